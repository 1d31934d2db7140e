"""Loading images for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.utils.data as torch_data
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from PIL import Image

from psf.data.mappers import build_mapper

__all__ = ["build_test_loader", "same_size_batches"]

_ORIENTATION, _QUARTER_TURNS = 0x0112, (5, 6, 7, 8)  # of EXIF


def build_test_loader(
    cfg: CfgNode, dataset: Sequence[dict[str, Any]], mapper: Callable[[dict[str, Any]], Any] | None = None
) -> torch_data.DataLoader[Any]:
    """A loader over this process's share of a data set, in batches of up to MODEL.PSF.TEST.BATCH_SIZE images.

    The images of a batch have one size, so that none is padded to another's, which would change its results: the
    neck's group norms see the padding.

    Args:
        cfg: the config.
        dataset: Detectron2's dicts.
        mapper: for each of them; None: that of INPUT.DATASET_MAPPER_NAME.

    Raises:
        ValueError: if BATCH_SIZE is less than 1.
    """
    batch_size = cfg.MODEL.PSF.TEST.BATCH_SIZE
    if batch_size < 1:
        raise ValueError(f"MODEL.PSF.TEST.BATCH_SIZE is {batch_size}: expected 1 or more")
    batches = same_size_batches(dataset, batch_size)
    return torch_data.DataLoader(
        MapDataset(DatasetFromList(list(dataset), copy=False), mapper or build_mapper(cfg, False)),
        batch_sampler=batches[comm.get_rank() :: comm.get_world_size()],
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
    )


def same_size_batches(dataset: Sequence[dict[str, Any]], batch_size: int) -> list[list[int]]:
    """Positions in the data set by batches of images of one size, each position once; in order for batches of one."""
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
    """Height and width, of the dict or of the file's header, which not all of Detectron2's sets have in their dicts."""
    if "height" in dataset_dict and "width" in dataset_dict:
        return dataset_dict["height"], dataset_dict["width"]
    with PathManager.open(dataset_dict["file_name"], "rb") as file:
        image = Image.open(file)
        width, height = image.size
        is_turned = image.getexif().get(_ORIENTATION) in _QUARTER_TURNS
    return (width, height) if is_turned else (height, width)
