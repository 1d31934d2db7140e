"""Worker processes of a loader: what makes one fail, and a message that says what to change."""

from __future__ import annotations

import multiprocessing.connection
import multiprocessing.queues
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _BaseDataLoaderIter, _MultiProcessingDataLoaderIter

from psf.errors import UserError

__all__ = ["WatchedLoader", "explain_dead_workers", "prepare_worker", "why_workers_failed", "worker_options"]


_SECONDS_BETWEEN_LOOKS = 10.0


class WorkerOptions(NamedTuple):
    """Arguments of torch's DataLoader."""

    num_workers: int
    timeout: int  # seconds after which the workers count as stuck; 0: never


def worker_options(cfg: CfgNode) -> WorkerOptions:
    """DATALOADER.NUM_WORKERS and TIMEOUT, which `psf.engine.config.checks.check_config` has checked."""
    count, timeout = cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.TIMEOUT
    return WorkerOptions(count, timeout if count else 0)  # torch refuses a timeout without workers


class WatchedLoader(DataLoader[Any]):
    """torch's loader, which notices within seconds that a worker has died.

    torch relies on a signal, whose error is lost while other workers are being forked, and looks at the workers only
    when `timeout` is over.
    """

    def _get_iterator(self) -> _BaseDataLoaderIter:
        if self.num_workers == 0:
            return super()._get_iterator()
        self.check_worker_number_rationality()
        return _WatchedBatches(self)


class _WatchedBatches(_MultiProcessingDataLoaderIter):
    def _get_data(self) -> Any:
        if not self._timeout:
            return super()._get_data()  # looks every few seconds
        end = time.monotonic() + self._timeout
        while (left := end - time.monotonic()) > 0:
            is_received, batch = self._try_get_data(min(left, _SECONDS_BETWEEN_LOOKS))  # an error if a worker is dead
            if is_received:
                return batch
        raise RuntimeError(f"DataLoader timed out after {self._timeout} seconds")


def prepare_worker(worker: int = 0) -> None:
    """For the start of a worker: it ends when it cannot send a batch, and when the main process is killed.

    Otherwise torch would only print why a batch, such as one without shared memory, cannot be sent, and the main
    process would wait forever; and a worker would wait forever to send to a process that is gone.
    """
    # Called in the thread that sends batches, where an exception ends nothing.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]
    _prctl_pr_set_pdeathsig(signal.SIGKILL)  # Linux; no effect elsewhere


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
        reason = why_workers_failed(error)
        if reason is None:
            raise
        # torch's handler would raise the same error again, with a traceback, when the process ends.
        if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal_handling._SIGCHLD_handler_set = False  # the next loader sets it again
        raise UserError(
            f"{reason.rstrip('.')}: often shared memory is too small ({_shared_memory()}), or the process ran out of "
            "memory; enlarge /dev/shm (docker run --shm-size=8g), or lower DATALOADER.NUM_WORKERS (0: no workers); if "
            "images are only slow to read, raise DATALOADER.TIMEOUT (seconds)"
        ) from error


def why_workers_failed(error: BaseException) -> str | None:
    """What happened to a loader worker that died or sends nothing, in one line; None if an error is about another."""
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
