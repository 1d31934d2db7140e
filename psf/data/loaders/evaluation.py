"""The loader of an evaluation: each image once, in batches of one size."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from PIL import Image

from psf.data.loaders.workers import WatchedLoader, prepare_worker, worker_options
from psf.data.mappers import build_mapper
from psf.errors import UserError

__all__ = ["TestLoader", "build_test_loader", "same_size_batches", "spread_evenly"]

T = TypeVar("T")

logger = logging.getLogger(__name__)

_ORIENTATION, _QUARTER_TURNS = 0x0112, (5, 6, 7, 8)  # of EXIF


def build_test_loader(
    cfg: CfgNode,
    dataset: Sequence[dict[str, Any]],
    mapper: Callable[[dict[str, Any]], Any] | None = None,
    *,
    keep_going: bool = False,
) -> TestLoader:
    """A loader over this process's share of a dataset, in batches of up to MODEL.PSF.TEST.BATCH_SIZE images.

    The images of a batch have the same size, because padding changes results: the neck's group norms include it.

    Args:
        cfg: the config.
        dataset: Detectron2's dicts.
        mapper: for the dicts; None: the mapper of INPUT.DATASET_MAPPER_NAME.
        keep_going: True: an image that cannot be read is logged and skipped, see `TestLoader.unreadable`; False: it
            raises a UserError.

    Raises:
        UserError: if BATCH_SIZE is less than 1.
    """
    batch_size = cfg.MODEL.PSF.TEST.BATCH_SIZE
    if batch_size < 1:
        raise UserError(f"MODEL.PSF.TEST.BATCH_SIZE is {batch_size}: expected 1 or more")
    batches = same_size_batches(dataset, batch_size)
    mapper = mapper or build_mapper(cfg, False)
    return TestLoader(
        MapDataset(DatasetFromList(list(dataset), copy=False), partial(_map_or_note, mapper) if keep_going else mapper),
        batch_sampler=batches[comm.get_rank() :: comm.get_world_size()],
        worker_init_fn=prepare_worker,
        **worker_options(cfg)._asdict(),
        collate_fn=trivial_batch_collator,
    )


class _Unreadable(str):
    """In the place of an image of a batch: why it cannot be read."""


def _map_or_note(mapper: Callable[[dict[str, Any]], Any], dataset_dict: dict[str, Any]) -> Any:
    try:
        return mapper(dataset_dict)
    except (UserError, OSError) as error:
        return _Unreadable(error)


class TestLoader(WatchedLoader):
    """Batches of readable images.

    Attributes:
        unreadable: why an image was skipped, for each image of the last iteration that could not be read.
    """

    __test__ = False  # no test of pytest's
    unreadable: list[str] = []  # noqa: RUF012  (replaced in each iteration)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator
        self.unreadable = []
        for batch in super().__iter__():
            skipped = [str(one) for one in batch if isinstance(one, _Unreadable)]
            for reason in skipped:
                logger.error("Skipped in the evaluation: %s", reason)
            self.unreadable += skipped
            if kept := [one for one in batch if not isinstance(one, _Unreadable)]:
                yield kept


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
