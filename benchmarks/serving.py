#!/usr/bin/env python3
"""Load test of `psf serve` on loopback: requests per second, latency, and memory over 2,000 requests.

Server and clients share the machine. The model is that of shapes/psf_tiny.yaml with random weights, and with thresholds
that keep some of its masks. The images are its scenes, enlarged to 640 x 480, as JPEG; the answers are JSON with the
panoptic PNG. Each client sends its next image when it has the last answer. The baseline is the predictor in a process
without a server. Results are kept up to a limit that is reached before the first measurement of memory.

    python benchmarks/serving.py
"""

from __future__ import annotations

import contextlib
import http.client
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from PIL import Image
from report import HERE, against, argument_parser, report
from tabulate import tabulate

import psf
from psf.data.images import read_picture
from psf.engine import build_checkpointer, build_config

CONFIG, SCENES = "shapes/psf_tiny.yaml", "psf_shapes_val"
THRESHOLDS = [
    word
    for kind in ("THINGS", "STUFF")
    for key, value in (("T_CNF", "0.01"), ("T_KEEP", "0"))
    for word in (f"MODEL.PSF.POST_PROCESSOR.{kind}.{key}", value)
]
NUM_IMAGES, SIZE = 20, (640, 480)
KEPT_MEGABYTES = 20
# Clients -> requests; 2,000 together.
LOADS = {1: 300, 4: 700, 16: 1000}
MEMORY_AT = (0.05, 0.5, 1)  # of the requests: 100, 1,000 and 2,000
BASELINE, OTHER_THRESHOLDS = "predictor alone", "other thresholds, 1 client"
MEMORY_FIRST, MEMORY_HALF, MEMORY_LAST = MEMORY = [f"memory after {share:.0%} of the requests" for share in MEMORY_AT]
MEMORY_TARGET = 1.05  # last over first
OVERHEAD_TARGET = 1.25  # time per request with 4 clients, over that of the predictor


class Load(NamedTuple):
    """Seconds of each request, and of all together."""

    latencies: list[float]
    elapsed: float

    def row(self, name: str, baseline: float | None) -> list[str]:
        rate = len(self.latencies) / self.elapsed
        p50, p99 = (1000 * float(np.percentile(self.latencies, share)) for share in (50, 99))
        ratio = "" if baseline is None else f"{1 / rate / baseline:.2f}"
        return [name, f"{len(self.latencies)}", f"{rate:.1f}", f"{p50:.1f}", f"{p99:.1f}", ratio, ""]


class Client:
    """One connection to the server, which closes it after some seconds without a request."""

    def __init__(self, address: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=120)

    def ask(self, path: str, image: bytes | None = None) -> bytes:
        self._connection.request(
            "GET" if image is None else "POST", path, image, {"Content-Type": "image/jpeg"} if image else {}
        )
        response = self._connection.getresponse()
        content = response.read()
        if response.status != 200:
            sys.exit(f"{path}: status {response.status}, {content[:200]!r}")
        return content

    def megabytes(self) -> float:
        """Resident memory of the server."""
        found = re.search(rb"^process_resident_memory_bytes (\S+)", self.ask("/metrics"), re.MULTILINE)
        return float(found[1]) / 1e6 if found else float("nan")


def main(words: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__, rounds=1)
    args = parser.parse_args(words)
    share = 50 if args.quick else 1
    images = scene_files(3 if args.quick else NUM_IMAGES)
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder))
        baseline = time_alone(model, images, 120 // share)
        rows = [baseline.row(BASELINE, None)]
        with served(model) as address:
            rows += measure(address, images, share, np.median(baseline.latencies).item())
    headers = ["", "requests", "requests/s", "p50 ms", "p99 ms", "/ alone", "MB"]
    table = tabulate(rows, headers, tablefmt="pipe", disable_numparse=True, colalign=["left"] + ["right"] * 6)
    memory = [float(row[-1]) for row in rows if row[-1]]
    conditions = (
        f"{CONFIG}, random weights; {SIZE[0]} x {SIZE[1]} JPEG; {torch.get_num_threads()} threads; results kept up to "
        f"{KEPT_MEGABYTES} MB; memory at the end over that at the beginning {memory[-1] / memory[0]:.3f}, "
        f"target {against(MEMORY_TARGET, memory[-1] / memory[0])}"
    )
    report("serving", f"{conditions}\n\n{table}", quick=args.quick)


def scene_files(number: int) -> list[bytes]:
    """JPEG files of the scenes."""
    files = []
    for scene in DatasetCatalog.get(SCENES)[:number]:
        file = io.BytesIO()
        Image.fromarray(read_picture(scene["file_name"])).resize(SIZE).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def write_model(folder: Path) -> Path:
    """A model file with random weights."""
    torch.manual_seed(0)
    words = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", *THRESHOLDS]
    predictor = psf.Predictor.from_config(build_config(CONFIG, words), device="cpu")
    build_checkpointer(predictor.cfg, predictor.model, str(folder)).save("model")
    return folder / "model.pth"


def time_alone(model: Path, images: Sequence[bytes], number: int) -> Load:
    """The predictor, from the bytes of a file to the panoptic PNG, without a server."""
    predictor = psf.Predictor(model, device="cpu")
    predictor.warm_up()

    def work(image: bytes) -> None:
        result = predictor(image)
        Image.fromarray(result.label_image()).save(io.BytesIO(), "PNG", compress_level=1)
        json.dumps(result.to_coco())

    return timed(itertools.cycle(images), number, [work])


def timed(images: Iterator[bytes], number: int, clients: Sequence[Callable[[bytes], object]]) -> Load:
    """Clients that work on `number` images together, each on one at a time."""
    lock, todo, latencies = threading.Lock(), iter(range(number)), list[float]()

    def run(client: Callable[[bytes], object]) -> None:
        while True:
            with lock:
                if next(todo, None) is None:
                    return
                image = next(images)
            begin = time.perf_counter()
            client(image)
            latencies.append(time.perf_counter() - begin)

    begin = time.perf_counter()
    with ThreadPoolExecutor(len(clients)) as executor:
        for future in [executor.submit(run, one) for one in clients]:
            future.result()
    return Load(latencies, time.perf_counter() - begin)


@contextlib.contextmanager
def served(model: Path) -> Iterator[str]:
    """The address of `psf serve` in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "psf", "serve", "--model", str(model), "--port", "0"]
    command += ["--device", "cpu", "--kept-megabytes", str(KEPT_MEGABYTES)]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().split()[2]
        finally:
            server.send_signal(signal.SIGTERM)
            server.stdout.read()


def measure(address: str, images: Sequence[bytes], share: int, alone: float) -> list[list[str]]:
    """Rows of each load, of other thresholds, and of memory; `alone` has seconds."""
    stream = itertools.cycle(images)
    rows, memory, num_done = [], list[list[str]](), 0
    stops = {round(sum(LOADS.values()) // share * part): name for part, name in zip(MEMORY_AT, MEMORY, strict=True)}

    def asks(path: str) -> Callable[[bytes], object]:
        client = Client(address)
        return lambda image: client.ask(path, image)

    for num_clients, number in LOADS.items():
        clients = [asks("/v1/segment") for _ in range(num_clients)]
        end = num_done + number // share
        latencies, elapsed = list[float](), 0.0
        while num_done < end:  # in parts: memory is measured between them
            part = timed(stream, min(stop for stop in (*stops, end) if stop > num_done) - num_done, clients)
            latencies, elapsed = latencies + part.latencies, elapsed + part.elapsed
            num_done += len(part.latencies)
            if num_done in stops:
                memory.append([stops[num_done], "", "", "", "", "", f"{Client(address).megabytes():.0f}"])
        text = f"{num_clients} client{'s' * (num_clients > 1)}"
        rows.append(Load(latencies, elapsed).row(text, alone))
    probe = Client(address)
    result_id = json.loads(probe.ask("/v1/segment", images[0]))["id"]
    values = itertools.cycle(np.linspace(0, 1, 21))
    again = timed(stream, 300 // share, [lambda _: probe.ask(f"/v1/results/{result_id}?confidence={next(values):.2f}")])
    return [*rows, again.row(OTHER_THRESHOLDS, alone), *memory]


if __name__ == "__main__":
    main()
