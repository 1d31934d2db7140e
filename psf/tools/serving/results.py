"""The newest results, kept so that other thresholds need no second run of the network."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from typing import NamedTuple

from psf.prediction import PanopticResult

__all__ = ["KeptResults"]


class _Kept(NamedTuple):
    result: PanopticResult
    num_bytes: int


class KeptResults:
    """Results by id, at most `max_bytes` of them; the ones that have not been used for longest go first.

    Threads may share it. Ids cannot be guessed: whoever has the id of a result may see it.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._num_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def num_bytes(self) -> int:
        """Memory of all results."""
        return self._num_bytes

    def add(self, result: PanopticResult) -> str | None:
        """Keep a result; returns its id, or None if it alone is larger than the limit."""
        num_bytes = result.num_bytes
        if num_bytes > self._max_bytes:
            return None
        key = secrets.token_urlsafe(16)
        with self._lock:
            self._kept[key] = _Kept(result, num_bytes)
            self._num_bytes += num_bytes
            while self._num_bytes > self._max_bytes:
                _, oldest = self._kept.popitem(last=False)
                self._num_bytes -= oldest.num_bytes
        return key

    def get(self, key: str) -> PanopticResult | None:
        """A result, which becomes the newest; None if it is not kept (any more)."""
        with self._lock:
            kept = self._kept.get(key)
            if kept is None:
                return None
            self._kept.move_to_end(key)
            return kept.result
