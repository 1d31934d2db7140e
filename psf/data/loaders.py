"""Loaders for training, which can be resumed exactly, and for evaluation; Detectron2's DATALOADER keys."""

from __future__ import annotations

import logging
import operator
import os
import random
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.utils.data as torch_data
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset
from detectron2.data.build import trivial_batch_collator, worker_init_reset_seed
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.file_io import PathManager
from PIL import Image
from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]

from psf.data.mappers import build_mapper
from psf.errors import UserError

__all__ = [
    "RandomState",
    "TrainingLoader",
    "build_test_loader",
    "build_train_loader",
    "check_sampler",
    "repeat_factors",
    "same_size_batches",
    "spread_evenly",
    "unchanged_random_state",
    "without_empty_images",
]

T = TypeVar("T")

logger = logging.getLogger(__name__)

# Detectron2's samplers whose keys its default config has -> whether they read the classes of an image.
_SAMPLERS = {"TrainingSampler": False, "RepeatFactorTrainingSampler": True}
_SEGMENTS = ("annotations", "segments_info")  # keys of Detectron2's dicts
_ORIENTATION, _QUARTER_TURNS = 0x0112, (5, 6, 7, 8)  # of EXIF


class RandomState(NamedTuple):
    """State of the random generators of Python, NumPy and torch's CPU in a process."""

    python: tuple[Any, ...]
    numpy: tuple[Any, ...]
    torch: np.ndarray  # no tensor: between processes it would need a file descriptor

    @classmethod
    def capture(cls) -> RandomState:
        """The state of this process."""
        return cls(random.getstate(), tuple(np.random.get_state(legacy=True)), torch.get_rng_state().numpy())

    def restore(self) -> None:
        """Set this process to the state."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(torch.from_numpy(self.torch))

    def as_entry(self) -> dict[str, Any]:
        """The state as tensors and plain values, for a checkpoint."""
        name, keys, *rest = self.numpy
        numpy = (name, torch.from_numpy(keys.astype(np.int64)), *rest)
        return {"python": self.python, "numpy": numpy, "torch": torch.from_numpy(self.torch)}

    @classmethod
    def of_entry(cls, entry: Mapping[str, Any]) -> RandomState:
        """The state from `as_entry`."""
        name, keys, *rest = entry["numpy"]
        version, numbers, gauss = entry["python"]
        numpy = (name, keys.numpy().astype(np.uint32), *rest)
        return cls((version, tuple(numbers), gauss), numpy, entry["torch"].numpy())


@contextmanager
def unchanged_random_state() -> Iterator[None]:
    """Leave the random generators as they were, so that an evaluation does not change the training after it."""
    state = RandomState.capture()
    try:
        yield
    finally:
        state.restore()


class _Origin(NamedTuple):
    """Where a training image comes from: enough to produce it again."""

    worker: int  # of the first run; 0 also without worker processes
    number: int  # in the stream of this process, from 0
    position: int  # in the dataset
    base_seed: int | None  # of the workers; None without worker processes
    random: RandomState  # before the mapper

    def as_entry(self) -> dict[str, Any]:
        return {**self._asdict(), "random": self.random.as_entry()}

    @classmethod
    def of_entry(cls, entry: Mapping[str, Any]) -> _Origin:
        return cls(**{**entry, "random": RandomState.of_entry(entry["random"])})


class _Sample(NamedTuple):
    origin: _Origin
    image: dict[str, Any]  # of the mapper


class _Stream(torch_data.IterableDataset[_Sample]):
    """The images of one process, or of one of its workers, without end.

    Workers share the stream in chunks of a batch, as in Detectron2. The last image that the trainer has received from a
    worker, and the random state before that image, determine all that follows: a new worker maps this image again,
    drops it, and goes on.
    """

    def __init__(self, dataset: MapDataset, sampler: Iterable[int], chunk_size: int) -> None:
        self.dataset, self.sampler, self.chunk_size = dataset, sampler, chunk_size
        self.skip = 0  # leading indices of the sampler that the stream does not contain
        self.base_seed: int | None = None  # of the workers of an earlier run
        self.first_worker = 0  # the worker of the earlier run whose turn is next; its place is taken by worker 0
        self.origins: dict[int, _Origin] = {}  # worker -> of the last image that it need not send again

    def __iter__(self) -> Iterator[_Sample]:
        info = torch_data.get_worker_info()
        worker, num_workers, base_seed = 0, 1, None
        if info is not None:
            worker, num_workers = (info.id + self.first_worker) % info.num_workers, info.num_workers
            base_seed = info.seed - info.id
        if info is not None and self.base_seed is not None:
            base_seed = self.base_seed
            seed_all_rng((base_seed + worker) % 2**31 + worker)  # as worker_init_reset_seed
        last = self.origins.get(worker)
        if info is not None and last is not None:
            last.random.restore()
            self.dataset[last.position]
        first = 0 if last is None else last.number + 1
        for number, index in enumerate(islice(self.sampler, self.skip, None)):
            if number >= first and number // self.chunk_size % num_workers == worker:
                origin = _Origin(worker, number, index, base_seed, RandomState.capture())
                yield _Sample(origin, self.dataset[index])


class TrainingLoader:
    """Batches of one process without end: the images and random numbers of Detectron2's loader, and a state.

    `state_dict` describes the batches that were handed out. A new loader with this state continues with the next batch,
    bit by bit, if it has the same numbers of processes, workers and images per batch. Without worker processes the
    mapper uses the random state of the process, which the trainer saves and restores.

    Args:
        dataset: maps an index to an image for the model.
        make_sampler: makes the sampler of this process from `seed`.
        seed: of the sampler, the same in all processes.
        batch_size: images of this process per batch.
        group_by_aspect_ratio: batches have only wide or only high images.
        num_workers: worker processes.
    """

    def __init__(
        self,
        dataset: MapDataset,
        make_sampler: Callable[..., Iterable[int]],
        seed: int,
        batch_size: int,
        *,
        group_by_aspect_ratio: bool,
        num_workers: int,
    ) -> None:
        self._make_sampler, self._seed, self._group = make_sampler, seed, group_by_aspect_ratio
        self._shape = {
            "num_processes": comm.get_world_size(),
            "num_workers": num_workers,
            "batch_size": batch_size,
            "num_images": len(dataset),
            "group_by_aspect_ratio": group_by_aspect_ratio,
        }
        self._stream = _Stream(dataset, make_sampler(seed=seed), batch_size)
        self._origins: dict[int, _Origin] = {}
        self._next_worker = 0
        self._buckets: tuple[list[_Sample], list[_Sample]] = ([], [])  # high, wide: images that wait for their batch
        self.batch_size = batch_size
        self._loader: torch_data.DataLoader[Any] = torch_data.DataLoader(
            self._stream,
            batch_size=1 if self._group else batch_size,
            num_workers=num_workers,
            collate_fn=operator.itemgetter(0) if self._group else trivial_batch_collator,
            worker_init_fn=_init_worker,
        )

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        # Draws the seed of the workers here, not with the first batch: a resumed run restores the random state between.
        received = iter(self._loader)
        return self._grouped(received) if self._group else self._plain(received)

    def _plain(self, received: Iterator[list[_Sample]]) -> Iterator[list[dict[str, Any]]]:
        for batch in received:
            self._note(batch[-1].origin)
            yield [sample.image for sample in batch]

    def _grouped(self, received: Iterator[_Sample]) -> Iterator[list[dict[str, Any]]]:
        for sample in received:
            self._note(sample.origin)
            bucket = self._buckets[sample.image["width"] > sample.image["height"]]
            bucket.append(sample)
            if len(bucket) == self.batch_size:
                batch = [sample.image for sample in bucket]
                bucket.clear()
                yield batch

    def _note(self, origin: _Origin) -> None:
        self._origins[origin.worker] = origin
        self._next_worker = (origin.worker + 1) % max(self._shape["num_workers"], 1)  # workers take turns

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values: what the batches so far were made of."""
        return {
            **self._shape,
            "seed": self._seed,
            "skip": self._stream.skip,
            "next_worker": self._next_worker,
            "origins": [origin.as_entry() for origin in self._origins.values()],
            "waiting": [sample.origin.as_entry() for bucket in self._buckets for sample in bucket],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> bool:
        """Continue after the batches of another loader; call it before the first batch.

        Returns:
            Whether the next batches are exactly those of the other loader. If numbers of processes, workers or images
            have changed, they are only further images in the same order.
        """
        self._seed = state["seed"]
        self._stream.sampler = self._make_sampler(seed=self._seed)
        origins = [_Origin.of_entry(entry) for entry in state["origins"]]
        if any(state[name] != value for name, value in self._shape.items()):
            num_own = state["skip"] + max((origin.number + 1 for origin in origins), default=0)
            self._stream.skip = num_own * state["num_processes"] // self._shape["num_processes"]
            return False
        self._stream.skip = state["skip"]
        self._origins = {origin.worker: origin for origin in origins}
        self._stream.origins = dict(self._origins)
        self._stream.first_worker = self._next_worker = state["next_worker"]
        self._stream.base_seed = next((origin.base_seed for origin in origins), None)
        with unchanged_random_state():
            for origin in map(_Origin.of_entry, state["waiting"]):
                origin.random.restore()
                sample = _Sample(origin, self._stream.dataset[origin.position])
                self._buckets[sample.image["width"] > sample.image["height"]].append(sample)
        return True


def _init_worker(worker: int) -> None:
    """Seed a worker; tie its life to the trainer.

    Signals to the process group do not reach it, because the trainer needs its images to finish an iteration. If the
    trainer is killed, so is the worker: it could wait for ever to send images that nobody receives.
    """
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    _prctl_pr_set_pdeathsig(signal.SIGKILL)  # Linux; no effect elsewhere
    worker_init_reset_seed(worker)


def build_train_loader(
    cfg: CfgNode, dataset: Sequence[dict[str, Any]], mapper: Callable[[dict[str, Any]], Any]
) -> TrainingLoader:
    """A loader over training images, by Detectron2's keys under DATALOADER.

    Args:
        cfg: the config.
        dataset: Detectron2's dicts; `check_sampler` accepts them.
        mapper: for the dicts.

    Raises:
        UserError: if the processes cannot share SOLVER.IMS_PER_BATCH evenly.
    """
    num_processes, total = comm.get_world_size(), cfg.SOLVER.IMS_PER_BATCH
    if total < num_processes or total % num_processes:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH is {total}, the batch of all {num_processes} processes: expected a multiple of "
            f"{num_processes}, or another --num-processes or --num-gpus"
        )
    make_sampler: Callable[..., Iterable[int]]
    if cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler":
        seed, make_sampler = cfg.SEED, partial(RepeatFactorTrainingSampler, repeat_factors(cfg, dataset))
    else:
        seed, make_sampler = comm.shared_random_seed(), partial(TrainingSampler, len(dataset))
    return TrainingLoader(
        MapDataset(DatasetFromList(list(dataset), copy=False), mapper),
        make_sampler,
        seed,
        total // num_processes,
        group_by_aspect_ratio=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


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
