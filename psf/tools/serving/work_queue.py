"""One thread that works on the requests in their order, beside the event loop of the server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from prometheus_client import Gauge

from psf.tools.serving.limits import CLIENT_GONE, Limits, Refusal

__all__ = ["WorkQueue"]

T = TypeVar("T")


class WorkQueue:
    """Jobs of the event loop for one thread; at most `limits.max_queue` wait for the one that runs.

    Args:
        name: of the thread.
        limits: of the server.
        length: shows the number of jobs that wait.
    """

    def __init__(self, name: str, limits: Limits, length: Gauge) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"psf-{name}")
        self._limits, self._gauge = limits, length.labels(name)
        self._num_jobs = self._num_waiting = 0

    async def run(self, job: Callable[[], T], client_gone: Callable[[], Awaitable[None]]) -> T:
        """Run a job in the thread, and wait for its result.

        Args:
            job: runs to its end once it has begun.
            client_gone: its coroutine ends when nobody waits for the result any more; a job that has not begun is
                then dropped.

        Raises:
            Refusal: if the queue is full, the job has waited for too long, or the client has gone.
        """
        if self._num_jobs > self._limits.max_queue:
            raise busy(self._limits)
        self._num_jobs += 1
        try:
            return await self._run(job, client_gone)
        finally:
            self._num_jobs -= 1

    async def _run(self, job: Callable[[], T], client_gone: Callable[[], Awaitable[None]]) -> T:
        loop, begun = asyncio.get_running_loop(), asyncio.Event()

        def begin() -> T:
            loop.call_soon_threadsafe(begun.set)
            return job()

        self._count(+1)
        future = self._executor.submit(begin)
        waits = [asyncio.ensure_future(begun.wait()), asyncio.ensure_future(client_gone())]
        try:
            await asyncio.wait(waits, timeout=self._limits.queue_seconds, return_when=asyncio.FIRST_COMPLETED)
            if not begun.is_set() and future.cancel():
                if waits[1].done():
                    raise Refusal(CLIENT_GONE, "the client has closed the connection")
                seconds = self._limits.queue_seconds
                raise Refusal(503, f"the image has waited for {seconds:g} s, the limit: try again later", 5)
        finally:
            self._count(-1)
            for one in waits:
                one.cancel()
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Drop all jobs that have not begun."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _count(self, change: int) -> None:
        self._num_waiting += change
        self._gauge.set(self._num_waiting)


def busy(limits: Limits) -> Refusal:
    """The answer to one request too many."""
    return Refusal(429, f"{limits.max_queue} images wait already, the limit: try again later", 1)
