#!/usr/bin/env python3
"""Time per image of psf's panoptic quality evaluator against Detectron2's COCOPanopticEvaluator, on one core.

The script first checks that the counts are equal. Predictions are the ground truth moved by a few pixels, without some
segments and with some wrong classes. The baseline runs without its pool of processes: panopticapi matches its images in
this process. Each run reads the ground truth's JSON and PNGs again.

    python benchmarks/panoptic_quality.py                                 generated maps of 480 x 640 pixels
    DETECTRON2_DATASETS=folder python benchmarks/panoptic_quality.py --dataset coco_2017_val_panoptic
"""

from __future__ import annotations

import copy
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import panopticapi.evaluation
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator, DatasetEvaluator
from panopticapi.evaluation import PQStat, pq_compute_single_core
from panopticapi.utils import id2rgb
from PIL import Image
from report import argument_parser, report, time_in_turns
from tabulate import tabulate

from psf.data import panoptic_metadata
from psf.evaluation import PanopticGroundTruth, PanopticQualityEvaluator

TARGET_RATIO = 0.25
GENERATED = "psf_benchmark_maps"

Pair = tuple[dict[str, Any], dict[str, Any]]


def main(words: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__, rounds=5)
    parser.add_argument("--dataset", default=GENERATED, help="a registered panoptic dataset with its ground truth")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    logging.getLogger("psf").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        if options.dataset == GENERATED:
            register_generated(Path(folder), num_images=2 if options.quick else 20)
        report("panoptic_quality", measure(options.dataset, options.rounds), quick=options.quick)


def measure(dataset: str, rounds: int) -> str:
    """Compare the counts, then measure the times: a table."""
    pairs = perturbed(dataset)
    stats: list[PQStat] = []

    def match_here(*arguments: Any) -> PQStat:
        stats.append(pq_compute_single_core(0, *arguments))
        return stats[-1]

    panopticapi.evaluation.pq_compute_multi_core = match_here
    ours = PanopticQualityEvaluator(dataset)
    results = evaluate(ours, pairs)
    if results != evaluate(COCOPanopticEvaluator(dataset), pairs):
        sys.exit("the results differ")
    for category, one in ours.per_class.items():
        other = stats[-1][category]
        if (one.tp, one.fp, one.fn, one.iou_sum) != (other.tp, other.fp, other.fn, other.iou):
            sys.exit(f"category {category}: {one}, panopticapi has {vars(other)}")

    makers = {
        "Detectron2's COCOPanopticEvaluator": partial(COCOPanopticEvaluator, dataset),
        "psf's PanopticQualityEvaluator": partial(PanopticQualityEvaluator, dataset),
        "... with PQ by size": partial(PanopticQualityEvaluator, dataset, by_size=True),
        "... with Boundary PQ": partial(PanopticQualityEvaluator, dataset, boundary=True),
    }
    times = time_in_turns([partial(evaluate_new, make, pairs) for make in makers.values()], rounds)
    rows = [[name, time / len(pairs), time / times[0]] for name, time in zip(makers, times, strict=True)]
    table = tabulate(rows, ["evaluator", "ms per image", "ratio"], tablefmt="pipe", floatfmt=".2f")
    return (
        f"{dataset}, {len(pairs)} images, PQ {results['panoptic_seg']['PQ']:.3f}: counts and IoU sums identical. "
        f"Target {TARGET_RATIO}.\n\n{table}"
    )


def evaluate_new(make: Callable[[], DatasetEvaluator], pairs: list[Pair]) -> dict[str, Any]:
    """One run of a new evaluator."""
    return evaluate(make(), pairs)


def evaluate(evaluator: DatasetEvaluator, pairs: list[Pair]) -> dict[str, Any]:
    """One run over all images. The segments are copied, because Detectron2's evaluator changes them."""
    evaluator.reset()
    for image, output in pairs:
        ids, segments = output["panoptic_seg"]
        evaluator.process([image], [{"panoptic_seg": (ids, [dict(segment) for segment in segments])}])
    return evaluator.evaluate()


def perturbed(dataset: str) -> list[Pair]:
    """The ground truth as predictions: shifted by (4, 6) pixels, every fifth segment dropped, every seventh wrong."""
    gt = PanopticGroundTruth(dataset)
    kinds = {True: sorted(gt.thing_ids.values()), False: sorted(gt.stuff_ids.values())}
    pairs: list[Pair] = []
    for image in DatasetCatalog.get(dataset):
        labels, segments = gt.read_contiguous(image["image_id"])
        moved = np.roll(labels, (4, 6), axis=(0, 1))
        ids = np.zeros(labels.shape, dtype=np.int32)
        predicted = []
        for number, segment in enumerate(segments, 1):
            if number % 5 == 0 or not (moved == segment["id"]).any():
                continue
            ids[moved == segment["id"]] = number
            others = kinds[segment["isthing"]]
            position = others.index(segment["category_id"]) + (number % 7 == 0)
            category = others[position % len(others)]
            predicted.append({"id": number, "category_id": category, "isthing": segment["isthing"]})
        pairs.append((copy.deepcopy(image), {"panoptic_seg": (torch.from_numpy(ids), predicted)}))
    return pairs


def register_generated(folder: Path, num_images: int, num_segments: int = 18) -> None:
    """Write and register maps of cells around random points; one cell in twelve is void."""
    categories = [{"id": 3 * i + 1, "name": f"class {i}", "isthing": i % 2} for i in range(20)]
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:480, :640]
    dicts, annotations = [], []
    for number in range(num_images):
        centers = rng.random((num_segments, 2)) * (480, 640)
        cells = ((rows - centers[:, :1, None]) ** 2 + (columns - centers[:, 1:, None]) ** 2).argmin(axis=0)
        own_ids = rng.choice(2**24 - 1, num_segments, replace=False) + 1
        own_ids[::12] = 0
        ids = own_ids[cells]
        file_name = f"{number:06d}.png"
        Image.fromarray(id2rgb(ids)).save(folder / file_name)
        segments = [
            {
                "id": one,
                "category_id": categories[rng.integers(20)]["id"],
                "iscrowd": 0,
                "area": int((ids == one).sum()),
            }
            for one in own_ids.tolist()
            if (ids == one).any() and one
        ]
        annotations.append({"image_id": number, "file_name": file_name, "segments_info": segments})
        dicts.append({"image_id": number, "file_name": file_name})
    path = folder / "panoptic.json"
    path.write_text(json.dumps({"categories": categories, "annotations": annotations}))
    DatasetCatalog.register(GENERATED, lambda: dicts)
    MetadataCatalog.get(GENERATED).set(
        panoptic_json=str(path), panoptic_root=str(folder), **panoptic_metadata(categories)
    )


if __name__ == "__main__":
    main()
