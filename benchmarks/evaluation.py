#!/usr/bin/env python3
"""Time per image of an evaluation (psf evaluate), beside a model that only sleeps: does the model set the pace?

The model sleeps while a GPU would work, and returns results that were made before: the ground truth of 133
classes, moved by a few pixels, each thing also three times more as an instance. The evaluation measures all that it can
(PQ, Boundary PQ, AP of masks and boxes, mIoU, panels). The baseline runs the same loader and model without evaluators.
Time counts from the first image to the last one's measurement; the metrics' final computation comes after it. The CPU
time hardly depends on other programs on the machine: without them, an evaluation keeps up with the model if all threads
together take less CPU time than the model sleeps.

    python benchmarks/evaluation.py
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from unittest.mock import patch

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, inference_on_dataset
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from panopticapi.utils import id2rgb
from PIL import Image
from report import against, argument_parser, report
from tabulate import tabulate
from torch import nn

import psf.data.files
import psf.data.panoptic_labels
from psf.data import register_panoptic
from psf.engine import Trainer, build_config
from psf.engine import argument_parser as run_parser
from psf.engine import main as evaluate_run
from psf.evaluation import PanopticGroundTruth

TARGET_RATIO = 1.1
DATASET = "psf_benchmark_evaluation"
NUM_CLASSES, NUM_THINGS, NUM_SEGMENTS, NUM_SCENES = 133, 80, 20, 8
HEIGHT, WIDTH = 480, 640

CONFIG = """
VERSION: 2
MODEL: {{META_ARCHITECTURE: PsfBenchmarkSleeper, WEIGHTS: "", DEVICE: cpu}}
DATASETS: {{TRAIN: [{name}], TEST: [{name}]}}
DATALOADER: {{NUM_WORKERS: {workers}}}
OUTPUT_DIR: {output}
"""


class Times(NamedTuple):
    """Seconds: by the clock, and CPU time of the main thread and of the process."""

    elapsed: float
    main_thread: float
    process: float

    @classmethod
    def now(cls) -> Times:
        return cls(time.perf_counter(), time.thread_time(), time.process_time())


class Measured(NamedTuple):
    """An evaluation: times per image, number of panoptic JSONs parsed, and of PNGs decoded by each thread."""

    times: Times
    parsed: int
    decoded: Counter[str]
    results: dict[str, Any]


class Clock:
    """When the model was first called, and when the last image was measured."""

    seconds_per_forward = 0.05
    results: ClassVar[dict[int, dict[str, Any]]] = {}  # scene -> output of the model
    start: Times | None = None
    end: Times

    @classmethod
    def begin(cls) -> None:
        """Call it before each image; the first call counts."""
        cls.start = cls.start or Times.now()

    @classmethod
    def finish(cls) -> None:
        cls.end = Times.now()

    @classmethod
    def per_image(cls) -> Times:
        """The times since the first image; the next image is the first again."""
        assert cls.start is not None
        number = len(DatasetCatalog.get(DATASET))
        times = Times._make((end - start) / number for start, end in zip(cls.start, cls.end, strict=True))
        cls.start = None
        return times


class PsfBenchmarkSleeper(nn.Module):
    """Sleeps, then returns the scene's results."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        Clock.begin()
        time.sleep(Clock.seconds_per_forward)
        return [Clock.results[image["image_id"] % NUM_SCENES] for image in batch]


def main(words: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__, rounds=5)
    parser.add_argument("--milliseconds", type=float, default=50, help="for which the model sleeps")
    parser.add_argument("--images", type=int, default=60)
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    Clock.seconds_per_forward = options.milliseconds / 1000
    models = {PsfBenchmarkSleeper.__name__: PsfBenchmarkSleeper}
    with tempfile.TemporaryDirectory() as folder, patch.dict(META_ARCH_REGISTRY._obj_map, models):
        try:
            write_dataset(Path(folder), NUM_SCENES if options.quick else options.images)
            Clock.results = {scene: moved(scene) for scene in range(NUM_SCENES)}
            measure(Path(folder), options.rounds, quick=options.quick)
        finally:
            Clock.results = {}
            for catalog in (DatasetCatalog, MetadataCatalog):
                catalog.pop(DATASET, None)


def measure(folder: Path, rounds: int, *, quick: bool) -> None:
    """Evaluate with and without a loader's worker; compare results, and report counts and times."""
    configs = {workers: folder / f"{workers}.yaml" for workers in (0, 1)}
    for workers, path in configs.items():
        path.write_text(CONFIG.format(name=DATASET, workers=workers, output=folder / f"output{workers}"))
    num_images = len(DatasetCatalog.get(DATASET))
    (folder / "panoptic.json").touch()  # so that the first evaluation parses it
    time.sleep(2.5)  # a JSON that was just written is not kept, see psf.data.panoptic_json
    first = evaluate(configs[0])
    rows = []
    for workers, path in configs.items():
        alone, evaluated = [], []
        for _ in range(rounds):
            alone.append(baseline(path))
            one = evaluate(path)
            evaluated.append(one.times)
            if json.dumps(one.results) != json.dumps(first.results):
                sys.exit("the results of two evaluations differ")
        # The least: other programs on the machine only add to a time.
        before, after = (Times._make(1000 * min(times) for times in zip(*runs)) for runs in (alone, evaluated))
        ratio = after.elapsed / before.elapsed
        times = [before.elapsed, after.elapsed, ratio, against(TARGET_RATIO, ratio)]
        rows.append([workers, *times, before.main_thread, after.main_thread, after.process])
    headers = ["workers", "loader and model, ms", "evaluated, ms", "ratio", "target"]
    headers += ["CPU: main thread, loader and model, ms", "... evaluated, ms", "CPU: all threads, evaluated, ms"]
    table = tabulate(rows, headers, tablefmt="pipe", floatfmt=".2f")
    decoded = first.decoded.total() / num_images
    quality = first.results["panoptic_seg"]["PQ"]
    report(
        "evaluation",
        f"{num_images} images of {WIDTH} x {HEIGHT}, {NUM_CLASSES} classes, a model that sleeps "
        f"{1000 * Clock.seconds_per_forward:g} ms; per image, the least of {rounds} rounds, with "
        f"{os.getloadavg()[0]:.0f} programs running. All evaluations have the "
        f"same results (PQ {quality:.3f}). The first evaluation parsed the panoptic JSON "
        f"{first.parsed} times and decoded {decoded:.2f} PNGs per image, {first.decoded['MainThread']} of all in the "
        f"main thread.\n\n{table}",
        quick=quick,
    )


def baseline(config: Path) -> Times:
    """The loader and the model alone."""
    with quiet():
        cfg = build_config(str(config))
        model, loader = Trainer.build_model(cfg), Trainer.build_test_loader(cfg, DATASET)
        inference_on_dataset(model, loader, _Nothing())
    return Clock.per_image()


class _Nothing(DatasetEvaluator):
    def evaluate(self) -> None:
        Clock.finish()


def evaluate(config: Path) -> Measured:
    """One run of `psf evaluate`; the first one of an output folder also derives the instances of the ground truth."""
    parsed, decoded = [], Counter[str]()
    load, read, compute = json.load, psf.data.panoptic_labels._read_ids, DatasetEvaluators.evaluate

    def counting_load(file: Any, **options: Any) -> Any:
        parsed.append(Path(file.name).name)
        return load(file, **options)

    def counting_read(file_name: str) -> np.ndarray:
        decoded[threading.current_thread().name] += 1
        return read(file_name)

    def compute_after(evaluators: DatasetEvaluators) -> Any:
        Clock.finish()
        return compute(evaluators)

    args = run_parser().parse_args(["--config-file", str(config), "--eval-only", "--num-gpus", "0"])
    with (
        quiet(),
        patch.object(psf.data.files.json, "load", counting_load),
        patch.object(psf.data.panoptic_labels, "_read_ids", counting_read),
        patch.object(DatasetEvaluators, "evaluate", compute_after),
    ):
        results = evaluate_run(args)
    return Measured(Clock.per_image(), parsed.count("panoptic.json"), decoded, results)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the output of an evaluation."""
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def moved(scene: int) -> dict[str, Any]:
    """Results for a scene: its ground truth, shifted by (4, 6) pixels."""
    labels, segments = PanopticGroundTruth(DATASET).read_contiguous(scene)
    labels = np.roll(labels, (4, 6), axis=(0, 1))
    ids, classes = np.zeros(labels.shape, np.int32), np.zeros(labels.shape, np.int64)
    predicted = []
    for number, one in enumerate(segments, 1):
        ids[labels == one["id"]] = number
        classes[labels == one["id"]] = one["category_id"]
        predicted.append({"id": number, "category_id": one["category_id"], "isthing": one["isthing"], "score": 0.9})
    things = [one for one in predicted if one["isthing"]] * 4
    instances = Instances(labels.shape)
    instances.pred_masks = torch.from_numpy(np.stack([ids == one["id"] for one in things]))
    instances.pred_boxes = Boxes(torch.rand(len(things), 4))
    instances.scores = torch.linspace(1, 0.1, len(things))
    instances.pred_classes = torch.tensor([one["category_id"] for one in things])
    panoptic = torch.from_numpy(ids), predicted
    return {"panoptic_seg": panoptic, "instances": instances, "sem_seg": torch.from_numpy(classes)}


def write_dataset(folder: Path, num_images: int) -> None:
    """Write and register scenes of cells around random points, each repeatedly; one cell in twelve is void."""
    categories = [{"id": 3 * i + 1, "name": f"class {i}", "isthing": int(i < NUM_THINGS)} for i in range(NUM_CLASSES)]
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    scenes = []
    for _ in range(NUM_SCENES):
        centers = rng.random((NUM_SEGMENTS, 2)) * (HEIGHT, WIDTH)
        cells = ((rows - centers[:, :1, None]) ** 2 + (columns - centers[:, 1:, None]) ** 2).argmin(axis=0)
        ids = rng.choice(2**24 - 1, NUM_SEGMENTS, replace=False) + 1
        ids[::12] = 0
        segments = [
            {"id": one, "category_id": categories[rng.integers(NUM_CLASSES)]["id"], "iscrowd": 0}
            for one in ids.tolist()
            if one
        ]
        pixels = cv2.resize(rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8), (WIDTH, HEIGHT))
        scenes.append((id2rgb(ids[cells]), segments, pixels))
    images, annotations = [], []
    for number in range(num_images):
        map_, segments, pixels = scenes[number % NUM_SCENES]
        Image.fromarray(map_).save(folder / f"{number}.png")
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
        images.append({"id": number, "file_name": f"{number}.jpg", "height": HEIGHT, "width": WIDTH})
        annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments})
    path = folder / "panoptic.json"
    path.write_text(json.dumps({"categories": categories, "images": images, "annotations": annotations}))
    register_panoptic(DATASET, path, folder, folder)


if __name__ == "__main__":
    main()
