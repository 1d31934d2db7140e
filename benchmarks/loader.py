#!/usr/bin/env python3
"""Time to prepare ground truth in the loader: psf's label map and boxes against masks made in the loader, on one core.

The baseline works like Mask2Former's mappers: it transforms the PNG in three channels, compares it with each segment's
id, and stacks the masks and their boxes. The script first expands psf's label map, as the model does on the device, and
checks that the masks are identical; a separate row has the time of this expansion.

    python benchmarks/loader.py
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import BitMasks
from panopticapi.utils import id2rgb, rgb2id
from PIL import Image
from report import argument_parser, report, time_in_turns
from tabulate import tabulate

from psf.data import read_panoptic_labels
from psf.data.mappers import transform_gt
from psf.structures import PanopticClasses, panoptic_targets

TARGET_RATIO = 0.15
SOURCE_SIZE, TARGET_SIZE = (480, 730), (800, 1216)  # height, width


GroundTruth = tuple[torch.Tensor, torch.Tensor]  # masks (G, H, W) bool, boxes (G, 4)


def main(words: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__, rounds=15)
    parser.add_argument("--segments", type=int, default=30)
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "ground truth.png"))
        text = measure(path, write_gt(path, 5 if options.quick else options.segments), options.rounds)
    report("loader", text, quick=options.quick)


def measure(path: str, segments: list[dict[str, Any]], rounds: int) -> str:
    """Compare masks and boxes, then measure the times: a table."""
    transforms = T.TransformList([T.HFlipTransform(SOURCE_SIZE[1]), T.ResizeTransform(*SOURCE_SIZE, *TARGET_SIZE)])
    classes = PanopticClasses(thing_ids=tuple(range(len(segments))), stuff_ids=(len(segments),))
    mapped = as_label_map(path, segments, transforms)

    def expand() -> GroundTruth:
        [targets] = panoptic_targets([mapped], classes, TARGET_SIZE, "cpu")
        return targets.thing_masks, targets.thing_boxes_xyxy_px

    for name, found, expected in zip(("masks", "boxes"), expand(), as_masks(path, segments, transforms), strict=True):
        if not torch.equal(found, expected):
            sys.exit(f"the {name} differ")

    baseline, ours, decoding, on_device = time_in_turns(
        [
            lambda: as_masks(path, segments, transforms),
            lambda: as_label_map(path, segments, transforms),
            lambda: np.asarray(Image.open(path)),
            expand,
        ],
        rounds,
    )
    rows = [
        ["masks in the loader", baseline, 1.0, 1.0],
        ["psf: label map and boxes", ours, ours / baseline, (ours - decoding) / (baseline - decoding)],
        ["decoding the PNG, part of both", decoding, decoding / baseline, None],
        ["psf: expanding the map to masks later, on a CPU", on_device, on_device / baseline, None],
    ]
    headers = ["", "ms per image", "ratio", "ratio without decoding"]
    table = tabulate(rows, headers, tablefmt="pipe", floatfmt=".3f")
    size = f"{len(segments)} segments at {TARGET_SIZE[0]} x {TARGET_SIZE[1]}"
    return f"Ground truth of an image, {size}: masks and boxes identical. Target {TARGET_RATIO}.\n\n{table}"


def as_label_map(path: str, segments: list[dict[str, Any]], transforms: T.TransformList) -> dict[str, Any]:
    """psf's mapper, without the image."""
    gt, boxes = transform_gt(transforms, read_panoptic_labels(path, segments))
    return {
        "image": torch.empty(3, *TARGET_SIZE, dtype=torch.uint8),
        "panoptic_labels": torch.from_numpy(gt.labels),
        "panoptic_boxes_xyxy_px": torch.from_numpy(boxes),
        "segments_info": gt.segments,
    }


def as_masks(path: str, segments: list[dict[str, Any]], transforms: T.TransformList) -> GroundTruth:
    """The baseline: three channels through the transforms, then one mask per segment."""
    ids = rgb2id(transforms.apply_segmentation(np.asarray(Image.open(path))))
    masks = BitMasks(torch.stack([torch.from_numpy(ids == segment["id"]) for segment in segments]))
    return masks.tensor, masks.get_bounding_boxes().tensor


def write_gt(path: str, num_segments: int) -> list[dict[str, Any]]:
    """Write a PNG of cells around random points, and return its segments, by id."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[: SOURCE_SIZE[0], : SOURCE_SIZE[1]]
    centers = rng.random((num_segments, 2)) * SOURCE_SIZE
    cells = ((rows - centers[:, :1, None]) ** 2 + (columns - centers[:, 1:, None]) ** 2).argmin(axis=0)
    ids = np.sort(rng.choice(2**24 - 1, num_segments, replace=False) + 1)
    Image.fromarray(id2rgb(ids[cells])).save(path)
    return [{"id": i, "category_id": number, "isthing": True} for number, i in enumerate(ids.tolist())]


if __name__ == "__main__":
    main()
