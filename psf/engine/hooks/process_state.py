"""What the next iteration of a process depends on, beside weights and optimizer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from detectron2.engine import HookBase

from psf.data import RandomState, TrainingLoader
from psf.engine.train_step import TrainStep

__all__ = ["ProcessStateHook"]

logger = logging.getLogger(__name__)


class ProcessStateHook(HookBase):
    """Captures the state of the loader and of the random generators for a checkpoint, and restores it.

    On a CPU a resumed run then has the losses of an unbroken one, bit by bit. Register it last: hooks before it may
    draw random numbers when a training starts.

    Args:
        step: of this process.
    """

    def __init__(self, step: TrainStep) -> None:
        self._step = step
        self.resumed: Mapping[str, Any] | None = None  # of a checkpoint, for the start of the training

    def capture(self) -> dict[str, Any]:
        """The state between two iterations, as tensors and plain values."""
        loader = self._step.data_loader
        return {
            "loader": loader.state_dict() if isinstance(loader, TrainingLoader) else None,
            "random": RandomState.capture().as_entry(),
        }

    def before_train(self) -> None:
        """Restore the state `resumed`."""
        if self.resumed is None:
            return
        loader, state = self._step.data_loader, self.resumed["loader"]
        if not isinstance(loader, TrainingLoader) or state is None:
            changes = ["the training loader, which has no state: the order of the images starts again"]
        else:
            changes = loader.load_state_dict(state)
        self._step.start_loader()  # draws a random number
        if changes:
            logger.warning(
                "Training continues, but not with the losses of an unbroken run; other than in the checkpoint: %s",
                ", ".join(changes),
            )
            return
        RandomState.of_entry(self.resumed["random"]).restore()
