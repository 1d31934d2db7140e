"""One function over many files, several at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

__all__ = ["Progress", "map_in_threads", "no_progress"]

In = TypeVar("In")
Out = TypeVar("Out")

# Passes so many results on and shows how far it is: `lambda results, total: tqdm(results, total=total)`.
Progress = Callable[[Iterable[Any], int], Iterable[Any]]


def no_progress(results: Iterable[Any], total: int) -> Iterable[Any]:
    """A `Progress` that shows nothing."""
    return results


def map_in_threads(
    function: Callable[[In], Out], items: Sequence[In], *, workers: int | None = None, progress: Progress = no_progress
) -> Iterator[Out]:
    """function(item) of every item, in order. The first exception ends it.

    Threads, since what takes time in reading and writing images releases Python's lock; they start at once, on every
    system, and nothing needs to be pickled.

    Args:
        workers: how many at a time; None: as many as there are processors, at most 16.
        progress: wraps the results.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"--workers is {workers}, expected at least 1")
    executor = ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 16))
    try:
        yield from progress(executor.map(function, items), len(items))
    finally:
        executor.shutdown(cancel_futures=True)
