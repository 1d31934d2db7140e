"""Loaders for evaluation, Detectron2's DATALOADER keys in training, unreadable images, and workers that die."""

from __future__ import annotations

import logging
import mmap
import multiprocessing.connection
import multiprocessing.queues
import os
import shutil
import sys
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch.utils.data as torch_data
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from PIL import Image

from psf.data.mappers import build_mapper
from psf.errors import UserError

__all__ = [
    "SkipUnreadable",
    "TestLoader",
    "build_test_loader",
    "check_sampler",
    "explain_dead_workers",
    "same_size_batches",
    "spread_evenly",
    "watch_workers",
    "without_empty_images",
]

T = TypeVar("T")

logger = logging.getLogger(__name__)

# Detectron2's samplers whose keys its default config has -> whether they read `annotations`.
_SAMPLERS = {"TrainingSampler": False, "RepeatFactorTrainingSampler": True}
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
    loader = TestLoader(
        MapDataset(DatasetFromList(list(dataset), copy=False), partial(_map_or_note, mapper) if keep_going else mapper),
        batch_sampler=batches[comm.get_rank() :: comm.get_world_size()],
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
    )
    watch_workers(cfg, loader)
    return loader


class _Unreadable(str):
    """In the place of an image of a batch: why it cannot be read."""


def _map_or_note(mapper: Callable[[dict[str, Any]], Any], dataset_dict: dict[str, Any]) -> Any:
    try:
        return mapper(dataset_dict)
    except (UserError, OSError) as error:
        return _Unreadable(error)


class TestLoader(torch_data.DataLoader[Any]):
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
    lists = [dataset_dict[key] for key in ("annotations", "segments_info") if key in dataset_dict]
    return not lists or any(not one.get("iscrowd", 0) for entries in lists for one in entries)


def check_sampler(cfg: CfgNode, dicts: Sequence[dict[str, Any]]) -> None:
    """Check that Detectron2 can build DATALOADER.SAMPLER_TRAIN over these dicts.

    Raises:
        UserError: if the sampler is not supported, or needs `annotations` and the dicts have none.
    """
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name not in _SAMPLERS:
        raise UserError(f'DATALOADER.SAMPLER_TRAIN is "{name}": expected one of {list(_SAMPLERS)}')
    if _SAMPLERS[name] and any("annotations" not in one for one in dicts):
        raise UserError(
            f'DATALOADER.SAMPLER_TRAIN is "{name}", which needs Detectron2\'s `annotations`; the panoptic sets of '
            'DATASETS.TRAIN have none: set it to "TrainingSampler"'
        )


class SkipUnreadable:
    """A mapper for training that skips images that cannot be read: it returns None, and Detectron2 takes another image.

    The images are counted across the workers of a process. More than DATALOADER.MAX_UNREADABLE_SHARE of the images, and
    more than one, raise a UserError. With a share of 0, the first one does.

    Args:
        cfg: of the training.
        mapper: raises a UserError or an OSError for an image that cannot be read.
        num_images: of the training.
    """

    SLOTS = 2**20  # of a hash of the file name; more than images that may be skipped

    def __init__(self, cfg: CfgNode, mapper: Callable[[dict[str, Any]], Any], num_images: int) -> None:
        share = cfg.DATALOADER.MAX_UNREADABLE_SHARE
        if not 0 <= share <= 1:
            raise UserError(f"DATALOADER.MAX_UNREADABLE_SHARE is {share}: expected a share from 0 to 1")
        self._mapper, self._limit = mapper, max(int(share * num_images), 1) if share else 0
        self._seen = mmap.mmap(-1, self.SLOTS)  # shared with forked workers

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_seen": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _seen=mmap.mmap(-1, self.SLOTS))  # a worker that is not forked counts alone

    def __call__(self, dataset_dict: dict[str, Any]) -> Any:
        try:
            return self._mapper(dataset_dict)
        except (UserError, OSError) as error:
            self._seen[zlib.crc32(str(dataset_dict.get("file_name")).encode()) % self.SLOTS] = 1
            count = self._seen[:].count(1)
            if count > self._limit:
                limit = f" ({count} images cannot be read; DATALOADER.MAX_UNREADABLE_SHARE allows {self._limit})"
                raise UserError(f"{error}{limit if self._limit else ''}") from error
            logger.warning(
                "Skipped in training, image %d of at most %d (DATALOADER.MAX_UNREADABLE_SHARE): %s",
                *(count, self._limit, error),
            )
            return None


def watch_workers(cfg: CfgNode, loader: Any) -> None:
    """Let the main process of a loader notice within DATALOADER.TIMEOUT seconds that a worker sends nothing.

    A worker that cannot send a batch, such as without shared memory, ends at once; torch would only print the reason,
    and the main process would wait forever. See `explain_dead_workers` for the message.

    Args:
        cfg: of the loader.
        loader: torch's, or Detectron2's with images grouped by aspect ratio.
    """
    timeout = cfg.DATALOADER.TIMEOUT
    if timeout < 0:
        raise UserError(f"DATALOADER.TIMEOUT is {timeout}: expected a number of seconds, or 0 to wait forever")
    inner = loader if isinstance(loader, torch_data.DataLoader) else getattr(loader, "dataset", None)
    if isinstance(inner, torch_data.DataLoader) and inner.num_workers:
        inner.timeout = timeout
        inner.worker_init_fn = partial(_init_worker, inner.worker_init_fn)


def _init_worker(before: Callable[[int], None] | None, worker_id: int) -> None:
    # Called in the thread that sends batches, where an exception ends nothing.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]
    if before is not None:
        before(worker_id)


def _end_worker(error: Exception, batch: object) -> None:
    sys.stderr.write(f"A loader worker cannot send its batch: {error}\n")
    sys.stderr.flush()
    os._exit(1)


@contextmanager
def explain_dead_workers() -> Iterator[None]:
    """Turn an error about a loader worker that died or sends nothing into a UserError that says what to change."""
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        reason = _why_workers_failed(error)
        if reason is None:
            raise
        raise UserError(
            f"{reason.rstrip('.')}: often shared memory is too small ({_shared_memory()}), or the process ran out of "
            "memory; enlarge /dev/shm (docker run --shm-size=8g), or lower DATALOADER.NUM_WORKERS (0: no workers); if "
            "images are only slow to read, raise DATALOADER.TIMEOUT (seconds)"
        ) from error


def _why_workers_failed(error: Exception) -> str | None:
    """One line; None if the error is about something else."""
    lines = str(error).splitlines()
    if isinstance(error, RuntimeError):
        names = ("DataLoader worker", "DataLoader timed out", "unable to allocate shared memory")
        return next((line for line in lines for name in names if line.startswith(name)), None)
    # A worker ended while the main process was fetching a tensor from it.
    files = {one.filename for one in traceback.extract_tb(error.__traceback__)}
    is_broken = isinstance(error, FileNotFoundError | ConnectionError | EOFError)
    if is_broken and multiprocessing.connection.__file__ in files:
        return f"DataLoader worker ended ({' '.join(lines) or type(error).__name__})"
    return None


def _shared_memory() -> str:
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError:
        return "there is no /dev/shm"
    return f"/dev/shm has {usage.free / 2**20:.1f} of {usage.total / 2**20:.1f} MiB free"
