"""The loader of a training, by Detectron2's keys under DATALOADER."""

from __future__ import annotations

import logging
import mmap
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm

from psf.data.loaders.resumable import TrainingLoader
from psf.data.loaders.sampling import ANNOTATION_KEYS, seeded_sampler
from psf.data.loaders.workers import worker_options
from psf.errors import UserError

__all__ = ["SkipUnreadable", "build_train_loader", "without_empty_images"]

logger = logging.getLogger(__name__)


def build_train_loader(
    cfg: CfgNode, dataset: Sequence[dict[str, Any]], mapper: Callable[[dict[str, Any]], Any]
) -> TrainingLoader:
    """A loader over training images, by Detectron2's keys under DATALOADER.

    Args:
        cfg: the config.
        dataset: Detectron2's dicts; `check_sampler` accepts them.
        mapper: for the dicts. Images that it cannot read are skipped, see `SkipUnreadable`.

    Raises:
        UserError: if the processes cannot share SOLVER.IMS_PER_BATCH evenly, or a value of a key is not valid.
    """
    num_processes, total = comm.get_world_size(), cfg.SOLVER.IMS_PER_BATCH
    if total < num_processes or total % num_processes:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH is {total}, the batch of all {num_processes} processes: expected a multiple of "
            f"{num_processes}, or another --num-processes or --num-gpus"
        )
    sampler = seeded_sampler(cfg, dataset)
    return TrainingLoader(
        dataset,
        SkipUnreadable(cfg, mapper, len(dataset)),
        sampler.make,
        sampler.seed,
        total // num_processes,
        sampler_name=sampler.name,
        group_by_aspect_ratio=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        **worker_options(cfg)._asdict(),
    )


class SkipUnreadable:
    """A mapper for training that skips images that cannot be read: it returns None, and the loader takes the next one.

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


def without_empty_images(cfg: CfgNode, dicts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Training images; FILTER_EMPTY_ANNOTATIONS True drops images without any annotation except crowds.

    Detectron2 checks only `annotations`; here an image also counts as annotated if `segments_info` has a segment. Dicts
    without both keys, and those of the generated shapes, are kept.

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
    lists = [dataset_dict[key] for key in ANNOTATION_KEYS if key in dataset_dict]
    return (
        not lists
        or "psf_scene" in dataset_dict
        or any(not one.get("iscrowd", 0) for entries in lists for one in entries)
    )
