#!/usr/bin/env python3
"""What a user waits for: `psf --help`, `psf predict` on one picture, and the first iteration of a training.

Each is a process of its own, as on the command line. `psf predict` is compared with a process that only imports psf,
builds the model, loads its weights and runs it once: what is more is the command's own (checks, drawing, files).

    python benchmarks/start.py --model output/quickstart/model_final.pth     on an idle machine; two minutes
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image
from report import argument_parser, report
from tabulate import tabulate

HELP_TARGET, PREDICT_TARGET, TRAIN_TARGET = 0.5, 1.3, 8.0  # seconds; times the work itself; seconds
WORK_ITSELF = """
import sys, time, torch, psf.prediction
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from psf.prediction import Predictor, read_model_file
file = read_model_file(sys.argv[1], device="cpu")
model = build_model(file.cfg).eval()
DetectionCheckpointer(model).load(sys.argv[1])
with torch.no_grad():
    model([{"image": torch.randint(0, 256, (3, *map(int, sys.argv[2:])), dtype=torch.uint8)}])
"""
SIZE = (427, 640)  # of the picture


def main(words: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__, rounds=3)
    parser.add_argument("--model", type=Path, help="a model file; default: the tiny model with random weights")
    options = parser.parse_args(words)
    rounds = 1 if options.quick else options.rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = options.model.resolve() if options.model else random_model(folder)
        Image.fromarray(np.full((*SIZE, 3), 128, dtype=np.uint8)).save(folder / "photo.jpg")
        short, long = input_size(model)
        times: dict[str, list[float]] = {"help": [], "work": [], "predict": [], "train": []}
        for number in range(rounds):
            times["help"].append(seconds("-m", "psf", "--help", cwd=folder))
            times["work"].append(
                seconds("-W", "ignore", "-c", WORK_ITSELF, str(model), str(short), str(long), cwd=folder)
            )
            words = ["predict", "--model", str(model), "photo.jpg", "--output", f"out{number}", "--device", "cpu"]
            times["predict"].append(seconds("-m", "psf", *words, cwd=folder))
            times["train"].append(first_iteration(folder / f"run{number}"))
    name = options.model.name if options.model else "shapes/psf_tiny.yaml, random weights"
    text = f"{name}; median of {rounds} rounds; CPU\n\n"
    report("start", text + table({key: median(values) for key, values in times.items()}), quick=options.quick)


def random_model(folder: Path) -> Path:
    """A self-contained file of the tiny model."""
    code = """
import sys, torch
from detectron2.modeling import build_model
from psf.checkpoint import ModelEntry
from psf.engine import build_config
cfg = build_config("shapes/psf_tiny.yaml", ["MODEL.DEVICE", "cpu"])
torch.save({"model": build_model(cfg).state_dict(), **ModelEntry.of_config(cfg).as_entry()}, sys.argv[1])
"""
    seconds("-W", "ignore", "-c", code, str(folder / "model.pth"), cwd=folder)
    return folder / "model.pth"


def input_size(model: Path) -> tuple[int, int]:
    """Height and width of the picture after the resize that the model's config asks for."""
    from psf.prediction import read_model_file

    cfg = read_model_file(model, device="cpu").cfg
    scale = cfg.INPUT.MIN_SIZE_TEST / min(SIZE) if cfg.INPUT.MIN_SIZE_TEST else 1.0
    scale = min(scale, cfg.INPUT.MAX_SIZE_TEST / max(SIZE))
    return round(SIZE[0] * scale), round(SIZE[1] * scale)


def seconds(*words: str, cwd: Path) -> float:
    """Wall time of a Python process, which must succeed."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr}")
    return time.perf_counter() - start


def first_iteration(folder: Path) -> float:
    """Wall time from the start of `psf train` to the end of its first iteration, in one process."""
    words = ["train", "--config-file", "shapes/psf_tiny.yaml", "--num-gpus", "0", "--num-processes", "1"]
    words += ["OUTPUT_DIR", str(folder), "SOLVER.MAX_ITER", "1000", "DATALOADER.NUM_WORKERS", "1"]
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, "-m", "psf", *words], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if re.search("The first iteration took", line):
                took = time.perf_counter() - start
                process.kill()
                return took
    raise SystemExit("the training ended before its first iteration")


def table(times: dict[str, float]) -> str:
    ratio = times["predict"] / times["work"]
    rows = [
        ("psf --help", times["help"], "s", verdict(times["help"], HELP_TARGET)),
        ("imports, model and one image", times["work"], "s", ""),
        ("psf predict, one image", times["predict"], "s", ""),
        ("psf predict over imports, model and one image", ratio, "", verdict(ratio, PREDICT_TARGET)),
        ("psf train to the end of its first iteration", times["train"], "s", verdict(times["train"], TRAIN_TARGET)),
    ]
    return tabulate(rows, ("", "value", "unit", "target"), tablefmt="pipe", floatfmt=".2f")


def verdict(value: float, target: float) -> str:
    return f"{target:g} {'met' if value <= target else 'MISSED'}"


if __name__ == "__main__":
    main()
