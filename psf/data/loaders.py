"""Loaders for evaluation, and Detectron2's DATALOADER keys in training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.utils.data as torch_data
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from PIL import Image

from psf.data.mappers import build_mapper
from psf.errors import UserError

__all__ = [
    "build_test_loader",
    "check_sampler",
    "repeat_factors",
    "same_size_batches",
    "spread_evenly",
    "without_empty_images",
]

T = TypeVar("T")

logger = logging.getLogger(__name__)

# Detectron2's samplers whose keys its default config has -> whether they read the classes of an image.
_SAMPLERS = {"TrainingSampler": False, "RepeatFactorTrainingSampler": True}
_SEGMENTS = ("annotations", "segments_info")  # keys of Detectron2's dicts
_ORIENTATION, _QUARTER_TURNS = 0x0112, (5, 6, 7, 8)  # of EXIF


def build_test_loader(
    cfg: CfgNode, dataset: Sequence[dict[str, Any]], mapper: Callable[[dict[str, Any]], Any] | None = None
) -> torch_data.DataLoader[Any]:
    """A loader over this process's share of a dataset, in batches of up to MODEL.PSF.TEST.BATCH_SIZE images.

    The images of a batch have the same size, because padding changes results: the neck's group norms include it.

    Args:
        cfg: the config.
        dataset: Detectron2's dicts.
        mapper: for the dicts; None: the mapper of INPUT.DATASET_MAPPER_NAME.

    Raises:
        UserError: if BATCH_SIZE is less than 1.
    """
    batch_size = cfg.MODEL.PSF.TEST.BATCH_SIZE
    if batch_size < 1:
        raise UserError(f"MODEL.PSF.TEST.BATCH_SIZE is {batch_size}: expected 1 or more")
    batches = same_size_batches(dataset, batch_size)
    return torch_data.DataLoader(
        MapDataset(DatasetFromList(list(dataset), copy=False), mapper or build_mapper(cfg, False)),
        batch_sampler=batches[comm.get_rank() :: comm.get_world_size()],
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
    )


def spread_evenly(items: Sequence[T], count: int | None) -> list[T]:
    """`count` evenly spaced items, starting with the first; all items if `count` is None or too large."""
    count = len(items) if count is None else min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def same_size_batches(dataset: Sequence[dict[str, Any]], batch_size: int) -> list[list[int]]:
    """Group dataset positions into batches of equal image size, each position once; in order if `batch_size` is 1."""
    if batch_size == 1:
        return [[position] for position in range(len(dataset))]
    by_size: dict[tuple[int, int], list[int]] = {}
    for position, one in enumerate(dataset):
        by_size.setdefault(_image_size(one), []).append(position)
    return [
        positions[start : start + batch_size]
        for positions in by_size.values()
        for start in range(0, len(positions), batch_size)
    ]


def _image_size(dataset_dict: dict[str, Any]) -> tuple[int, int]:
    """Height and width, from the dict or, if absent there, from the file's header."""
    if "height" in dataset_dict and "width" in dataset_dict:
        return dataset_dict["height"], dataset_dict["width"]
    with PathManager.open(dataset_dict["file_name"], "rb") as file:
        image = Image.open(file)
        width, height = image.size
        is_turned = image.getexif().get(_ORIENTATION) in _QUARTER_TURNS
    return (width, height) if is_turned else (height, width)


def without_empty_images(cfg: CfgNode, dicts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Training images; FILTER_EMPTY_ANNOTATIONS True drops images without any annotation except crowds.

    Detectron2 checks only `annotations`; here an image also counts as annotated if `segments_info` has a segment. Dicts
    without both keys, such as those of the generated shapes, are kept.

    Raises:
        UserError: if all images are dropped.
    """
    if not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        return list(dicts)
    kept = [one for one in dicts if _is_annotated(one)]
    if not kept:
        raise UserError(
            "no image of DATASETS.TRAIN has an annotation that is not a crowd; set "
            "DATALOADER.FILTER_EMPTY_ANNOTATIONS to False to train on them"
        )
    if len(kept) < len(dicts):
        logger.info(
            "Dropped %d of %d training images without annotations (DATALOADER.FILTER_EMPTY_ANNOTATIONS)",
            len(dicts) - len(kept),
            len(dicts),
        )
    return kept


def _is_annotated(dataset_dict: dict[str, Any]) -> bool:
    lists = [dataset_dict[key] for key in _SEGMENTS if key in dataset_dict]
    return not lists or any(not one.get("iscrowd", 0) for entries in lists for one in entries)


def check_sampler(cfg: CfgNode, dicts: Sequence[dict[str, Any]]) -> None:
    """Check that Detectron2 can build DATALOADER.SAMPLER_TRAIN over these dicts.

    Raises:
        UserError: if the sampler is not supported, or needs the classes of each image and a dict does not list them.
    """
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name not in _SAMPLERS:
        raise UserError(f'DATALOADER.SAMPLER_TRAIN is "{name}": expected one of {list(_SAMPLERS)}')
    if _SAMPLERS[name] and not all(one.keys() & set(_SEGMENTS) for one in dicts):
        raise UserError(
            f'DATALOADER.SAMPLER_TRAIN is "{name}", which needs the classes of each image; the dicts of DATASETS.TRAIN '
            'have neither segments_info nor annotations: set it to "TrainingSampler"'
        )


def repeat_factors(cfg: CfgNode, dicts: Sequence[dict[str, Any]]) -> torch.Tensor:
    """(N,) factors for RepeatFactorTrainingSampler: how often an epoch shows each image, by its rarest class.

    Detectron2 reads the classes from `annotations`; here they come from `segments_info`, where a dict has it.
    """
    segments = [{"annotations": one.get("segments_info", one.get("annotations"))} for one in dicts]
    return RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        segments, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
    )
