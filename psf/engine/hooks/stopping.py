"""Signals that stop a training after its current iteration."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from types import FrameType
from typing import Any

from detectron2.utils import comm

__all__ = ["ForwardedSignals", "StopSignals", "Stopped", "stop_numbers"]

_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")  # SIGUSR1: from job schedulers, some minutes before the limit
# A second signal within this time is taken for a copy of the first: a terminal, a scheduler and the parent process may
# each send one.
_COPY_SECONDS = 2.0


def stop_numbers() -> list[int]:
    """The signals that stop a run, as far as this system has them."""
    return [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]


class Stopped(SystemExit):
    """A training that a signal has stopped; it ends the process with the exit code that a shell gives such a process.

    Args:
        number: of the signal.
        is_agreed: all processes of the training stop after the same iteration.
    """

    def __init__(self, number: int, *, is_agreed: bool = False) -> None:
        super().__init__(128 + number)
        self.code: int = 128 + number
        self.number, self.is_agreed = number, is_agreed

    @property
    def signal_name(self) -> str:
        """The signal as a user knows it."""
        return "Ctrl-C" if self.number == signal.SIGINT else signal.Signals(self.number).name


class _Handlers(ABC):
    """A context in which `_handle` receives the signals of `_NAMES`; does nothing outside the main thread."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._received_at = 0.0
        self._process = os.getpid()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Any:
        if threading.current_thread() is threading.main_thread():
            for number in stop_numbers():
                if number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) == signal.SIG_IGN:
                    continue  # nohup
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker of a loader, which has inherited this handler
            return
        is_first = self.received is None
        if not is_first and time.monotonic() - self._received_at < _COPY_SECONDS:
            return
        self.received, self._received_at = number, time.monotonic()
        self._handle(number, is_first=is_first)

    @abstractmethod
    def _handle(self, number: int, *, is_first: bool) -> None:
        """React to a signal that is no copy of an earlier one."""


class StopSignals(_Handlers):
    """A context that notes a signal while an iteration runs, and raises `Stopped` at other times.

    The trainer sets `is_deferred` while an iteration runs, and reads `received` after it. `allow` ends this. A second
    signal raises `Stopped` at once, whatever runs.
    """

    is_deferred = False

    def allow(self) -> None:
        """From now on a signal raises `Stopped` at once; all processes call this together, when all is saved.

        Raises:
            Stopped: in all processes, if a signal has been noted in any of them.
        """
        self.is_deferred = False  # first: a signal that arrives now is not lost
        if number := max(comm.all_gather(self.received or 0)):
            raise Stopped(number, is_agreed=True)

    def _handle(self, number: int, *, is_first: bool) -> None:
        if not (self.is_deferred and is_first):
            raise Stopped(number)


class ForwardedSignals(_Handlers):
    """A context of the process that has started others: they receive its signals.

    Attributes:
        received: the signal that has arrived last; None: no signal.
        others: ids of started processes, in addition to those of `multiprocessing`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.others: list[int] = []

    def _handle(self, number: int, *, is_first: bool) -> None:
        for child in [*(child.pid for child in multiprocessing.active_children()), *self.others]:
            if child is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, number)
