"""When checkpoints are written, how many are kept, and how a signal ends a training."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any, Protocol

from detectron2.config import CfgNode, get_cfg
from detectron2.engine import HookBase
from detectron2.utils import comm

from psf.engine.hooks.stopping import StopSignals
from psf.engine.train_step import any_process

__all__ = ["CheckpointHook", "checkpoint_period"]

SAVES_PER_RUN = 10  # at least, with the default period
REGULAR = re.compile(r"model_\d{7,}\.pth")  # what the hook writes before the end


def checkpoint_period(cfg: CfgNode) -> tuple[int, float]:
    """Iterations and seconds after which a checkpoint is due; 0 means never.

    Detectron2's default SOLVER.CHECKPOINT_PERIOD (5000) is shortened to a tenth of MAX_ITER, and a checkpoint is also
    due every SOLVER.CHECKPOINT_MINUTES. Any other period is used as it is; 0 writes only the last checkpoint.
    """
    period, minutes = cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.CHECKPOINT_MINUTES
    if period != get_cfg().SOLVER.CHECKPOINT_PERIOD:
        return period, 0.0
    return max(min(period, cfg.SOLVER.MAX_ITER // SAVES_PER_RUN), 1), 60.0 * minutes


class SavesCheckpoints(Protocol):
    """What `CheckpointHook` needs of a trainer."""

    iter: int
    max_iter: int

    def save_checkpoint(self, name: str) -> Path:
        """Write OUTPUT_DIR/name.pth; all processes call this together. Returns its path."""

    def save_final(self) -> Path:
        """Write the checkpoint of a finished training; all processes call this together. Returns its path."""


class CheckpointHook(HookBase):
    """Writes checkpoints in all processes together, and stops the training after a signal.

    A checkpoint is due after `period` iterations, after `seconds`, before each evaluation (unless `period` is 0), when
    a signal has arrived, and at the end. The newest `keep` of them stay, and each `keep_every`-th of the regular ones.
    Only files that this run has written are deleted.

    Args:
        signals: of this process.
        device_type: "cuda" or "cpu".
        period: in iterations; 0: off.
        seconds: since the last checkpoint; 0: off.
        eval_period: TEST.EVAL_PERIOD.
        keep: number of checkpoints; 0: all.
        keep_every: 0: off.

    Raises:
        Stopped: after the iteration in which a signal has arrived in any process.
    """

    trainer: SavesCheckpoints

    def __init__(
        self,
        signals: StopSignals,
        *,
        device_type: str,
        period: int,
        seconds: float,
        eval_period: int,
        keep: int,
        keep_every: int,
    ) -> None:
        self._signals, self._device_type = signals, device_type
        self._period, self._seconds, self._eval_period = period, seconds, eval_period
        self._keep, self._keep_every = keep, keep_every
        self._recent: list[str] = []  # file names, oldest first
        self._saved_at = 0.0

    @classmethod
    def from_config(cls, cfg: CfgNode, signals: StopSignals) -> CheckpointHook:
        """The hook for a config."""
        period, seconds = checkpoint_period(cfg)
        return cls(
            signals,
            device_type=cfg.MODEL.DEVICE.partition(":")[0],
            period=period,
            seconds=seconds,
            eval_period=cfg.TEST.EVAL_PERIOD,
            keep=cfg.SOLVER.CHECKPOINTS_TO_KEEP,
            keep_every=cfg.SOLVER.CHECKPOINT_KEEP_EVERY,
        )

    def before_train(self) -> None:
        self._saved_at = time.monotonic()

    def before_step(self) -> None:
        self._signals.is_deferred = True

    def after_step(self) -> None:
        next_iter = self.trainer.iter + 1
        is_late = comm.is_main_process() and 0 < self._seconds < time.monotonic() - self._saved_at
        is_noted = self._signals.received is not None
        is_stopped, is_late = any_process([is_noted, is_late], device_type=self._device_type)
        is_evaluated = self._period > 0 and self._eval_period > 0 and next_iter % self._eval_period == 0
        is_regular = self._period > 0 and next_iter % self._period == 0
        if next_iter == self.trainer.max_iter:
            self.trainer.save_final()
        elif is_regular or is_late or is_evaluated or is_stopped:
            is_for_good = is_regular and self._keep_every > 0 and next_iter // self._period % self._keep_every == 0
            self._save(f"model_{self.trainer.iter:07d}", is_for_good=is_for_good)
        if is_stopped or is_evaluated or next_iter == self.trainer.max_iter:
            # All is saved: a signal, also one that has come meanwhile, need not wait for the end of an evaluation.
            self._signals.allow()

    def after_train(self) -> None:
        self._signals.is_deferred = False

    def _save(self, name: str, *, is_for_good: bool) -> None:
        if not is_for_good:
            self._recent.append(f"{name}.pth")  # before the file is written, which contains this list
        path = self.trainer.save_checkpoint(name)
        self._saved_at = time.monotonic()
        while self._keep and len(self._recent) > self._keep:
            old = path.with_name(self._recent.pop(0))
            if comm.is_main_process() and old != path:
                old.unlink(missing_ok=True)

    def state_dict(self) -> dict[str, Any]:
        return {"recent": list(self._recent)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # The list comes from a file, and what it names will be deleted.
        self._recent = [name for name in state_dict["recent"] if REGULAR.fullmatch(str(name))]
