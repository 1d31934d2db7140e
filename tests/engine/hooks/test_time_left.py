"""The log says after the first iterations when the last one will end."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
from detectron2.engine import HookBase

from psf.engine.hooks import TimeLeftHook
from psf.engine.hooks import time_left as module


def test_time_left(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The first iteration, with the loaders' start, is not part of the estimate."""
    clock = iter([100.0, 160.0, 162.5])  # start, after iteration 5, after iteration 15
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    hook: HookBase = TimeLeftHook()
    hook.trainer = SimpleNamespace(iter=5, start_iter=5, max_iter=14_416)  # type: ignore[assignment]  # resumed
    hook.before_train()
    with caplog.at_level(logging.INFO):
        hook.after_step()
        hook.trainer.iter = 15
        hook.after_step()
    # 2.5 s for 10 iterations; 14,416 - 16 are left: 3,600 s
    assert [record.getMessage().partition(", at about")[0] for record in caplog.records] == [
        "The first iteration took 60.0 s",
        "0.25 s an iteration: the last one ends in 1:00:00",
    ]
