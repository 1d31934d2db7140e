"""Training images whose order and random numbers continue exactly after a stop."""

from __future__ import annotations

import hashlib
import operator
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.utils.data as torch_data
from detectron2.data import DatasetFromList
from detectron2.data.build import trivial_batch_collator, worker_init_reset_seed
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.serialize import PicklableWrapper

from psf.data.loaders.workers import WatchedLoader, prepare_worker
from psf.errors import UserError

__all__ = ["RandomState", "TrainingLoader", "unchanged_random_state"]

Mapper = Callable[[dict[str, Any]], Any]


class RandomState(NamedTuple):
    """State of the random generators of Python, NumPy and torch in a process; those of GPUs if it has used one."""

    python: tuple[Any, ...]
    numpy: tuple[Any, ...]
    torch: np.ndarray  # no tensor: between processes it would need a file descriptor
    gpus: tuple[np.ndarray, ...] = ()  # of each visible GPU

    @classmethod
    def capture(cls) -> RandomState:
        """The state of this process."""
        gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return cls(
            random.getstate(),
            tuple(np.random.get_state(legacy=True)),
            torch.get_rng_state().numpy(),
            tuple(state.numpy() for state in gpus),
        )

    def restore(self) -> None:
        """Set this process to the state."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(torch.from_numpy(self.torch))
        if torch.cuda.is_initialized():
            for gpu, state in zip(range(torch.cuda.device_count()), self.gpus, strict=False):
                torch.cuda.set_rng_state(torch.from_numpy(state), gpu)

    def as_entry(self) -> dict[str, Any]:
        """The state as tensors and plain values, for a checkpoint."""
        name, keys, *rest = self.numpy
        numpy = (name, torch.from_numpy(keys.astype(np.int64)), *rest)
        gpus = [torch.from_numpy(state) for state in self.gpus]
        return {"python": self.python, "numpy": numpy, "torch": torch.from_numpy(self.torch), "gpus": gpus}

    @classmethod
    def of_entry(cls, entry: Mapping[str, Any]) -> RandomState:
        """The state from `as_entry`."""
        name, keys, *rest = entry["numpy"]
        version, numbers, gauss = entry["python"]
        numpy = (name, keys.numpy().astype(np.uint32), *rest)
        gpus = tuple(state.numpy() for state in entry.get("gpus", ()))  # an earlier version has none
        return cls((version, tuple(numbers), gauss), numpy, entry["torch"].numpy(), gpus)


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

    def __init__(
        self, dataset: Sequence[dict[str, Any]], mapper: Mapper, sampler: Iterable[int], chunk_size: int
    ) -> None:
        self.dataset, self.mapper, self.sampler, self.chunk_size = dataset, mapper, sampler, chunk_size
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
            self.image(last.position)
        first = 0 if last is None else last.number + 1
        for number, index in enumerate(islice(self.sampler, self.skip, None)):
            if number >= first and number // self.chunk_size % num_workers == worker:
                origin = _Origin(worker, number, index, base_seed, RandomState.capture())
                yield _Sample(origin, self.image(index))

    def image(self, position: int) -> dict[str, Any]:
        """The image at a position; if the mapper returns None for it, the next one for which it does not."""
        for offset in range(len(self.dataset)):
            image = self.mapper(self.dataset[(position + offset) % len(self.dataset)])
            if image is not None:
                return image
        raise UserError(f"the mapper returns None for all {len(self.dataset)} training images")


class TrainingLoader:
    """Batches of one process without end: the images and random numbers of Detectron2's loader, and a state.

    `state_dict` describes the batches that were handed out. A new loader with this state continues with the next batch,
    bit by bit, if it has the same images, sampler, and numbers of processes, workers and images per batch. Without
    worker processes the mapper uses the random state of the process, which the trainer saves and restores.

    Args:
        dataset: Detectron2's dicts.
        mapper: makes an image for the model from a dict; None: the next image is taken.
        make_sampler: makes the sampler of this process from `seed`.
        seed: of the sampler, the same in all processes.
        batch_size: images of this process per batch.
        sampler_name: samplers of another name do not have the same order.
        group_by_aspect_ratio: batches have only wide or only high images.
        num_workers: worker processes.
        timeout: seconds to wait for a batch of the workers; 0: forever.
    """

    def __init__(
        self,
        dataset: Sequence[dict[str, Any]],
        mapper: Mapper,
        make_sampler: Callable[..., Iterable[int]],
        seed: int,
        batch_size: int,
        *,
        sampler_name: str,
        group_by_aspect_ratio: bool,
        num_workers: int,
        timeout: int = 0,
    ) -> None:
        self._make_sampler, self._seed, self._group = make_sampler, seed, group_by_aspect_ratio
        self._shape = {
            "num_processes": comm.get_world_size(),
            "num_workers": num_workers,
            "batch_size": batch_size,
            "num_images": len(dataset),
            "group_by_aspect_ratio": group_by_aspect_ratio,
            "sampler": sampler_name,
            "images": _digest(dataset),
        }
        shared = DatasetFromList(list(dataset), copy=False)  # serialized: workers share its memory
        self._stream = _Stream(shared, PicklableWrapper(mapper), make_sampler(seed=seed), batch_size)
        self._origins: dict[int, _Origin] = {}
        self._next_worker = 0
        self._buckets: tuple[list[_Sample], list[_Sample]] = ([], [])  # high, wide: images that wait for their batch
        self.batch_size, self.num_images = batch_size, len(dataset)
        self._loader = WatchedLoader(
            self._stream,
            batch_size=1 if self._group else batch_size,
            num_workers=num_workers,
            timeout=timeout,
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

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Continue after the batches of another loader; call it before the first batch.

        Returns:
            What differs from the other loader, such as "num_workers (2, now 1)". If nothing does, the next batches are
            exactly those of the other loader; otherwise they are further images of the same seed.
        """
        self._seed = state["seed"]
        self._stream.sampler = self._make_sampler(seed=self._seed)
        origins = [_Origin.of_entry(entry) for entry in state["origins"]]
        changed = [
            f"{name} ({state[name]}, now {value})"
            for name, value in self._shape.items()
            if state.get(name, value) != value  # an earlier version has not stored all of them
        ]
        if changed:
            num_own = state["skip"] + max((origin.number + 1 for origin in origins), default=0)
            self._stream.skip = num_own * state["num_processes"] // self._shape["num_processes"]
            return changed
        self._stream.skip = state["skip"]
        self._origins = {origin.worker: origin for origin in origins}
        self._stream.origins = dict(self._origins)
        self._stream.first_worker = self._next_worker = state["next_worker"]
        self._stream.base_seed = next((origin.base_seed for origin in origins), None)
        with unchanged_random_state():
            for origin in map(_Origin.of_entry, state["waiting"]):
                origin.random.restore()
                sample = _Sample(origin, self._stream.image(origin.position))
                self._buckets[sample.image["width"] > sample.image["height"]].append(sample)
        return []


def _digest(dataset: Sequence[Mapping[str, Any]]) -> str:
    """A hash of the images' names below their common folder, and of their sizes, so that the set may be moved."""
    names = [str(one.get("file_name", "")) for one in dataset]
    start = os.path.commonprefix(names).rfind("/") + 1  # noqa: RUF071 - commonpath raises for names of several kinds
    found = hashlib.sha256()
    for name, one in zip(names, dataset, strict=True):
        found.update(f"{name[start:]} {one.get('width')} {one.get('height')}\n".encode(errors="replace"))
    return found.hexdigest()[:16]


def _init_worker(worker: int) -> None:
    """Seed a worker. Signals to the process group do not reach it: the trainer needs its images to end an iteration."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    prepare_worker()
    worker_init_reset_seed(worker)
