"""What tools share that measure panoptic quality on one data set, or on some images of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TypeVar

from detectron2.config import CfgNode

from psf.data import load_dataset
from psf.evaluation import has_panoptic_truth

__all__ = ["add_num_images_flag", "panoptic_test_set", "spread_evenly"]

T = TypeVar("T")


def add_num_images_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--num-images`, 1 or more; None if it is not given."""

    def number(text: str) -> int:
        if int(text) < 1:
            raise argparse.ArgumentTypeError(f"expected 1 or more, found {text}")
        return int(text)

    parser.add_argument("--num-images", type=number, help="so many, spread evenly over the data set (default: all)")


def panoptic_test_set(cfg: CfgNode) -> str:
    """Name of the first of DATASETS.TEST, which has a panoptic truth; where psf generates it, it is there then.

    Raises:
        ValueError: if there is none, or its files are missing or damaged, or it has no panoptic truth.
    """
    if not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST is empty: name a data set with panoptic truth")
    name: str = cfg.DATASETS.TEST[0]
    load_dataset(name)
    if not has_panoptic_truth(name):
        raise ValueError(f"{name} (DATASETS.TEST) has no panoptic_json and panoptic_root: PQ cannot be measured on it")
    return name


def spread_evenly(items: Sequence[T], count: int | None) -> list[T]:
    """So many of them, at even distances, the first one included; all, if `count` is None or no less than there are."""
    count = len(items) if count is None else min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]
