"""What the next iteration of a process depends on, beside weights and optimizer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
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
        device_type: "cuda" or "cpu".
    """

    def __init__(self, step: TrainStep, device_type: str) -> None:
        self._step, self._is_on_gpu = step, device_type == "cuda"
        self.resumed: Mapping[str, Any] | None = None  # of a checkpoint, for the start of the training

    def capture(self) -> dict[str, Any]:
        """The state between two iterations, as tensors and plain values."""
        loader = self._step.data_loader
        return {
            "loader": loader.state_dict() if isinstance(loader, TrainingLoader) else None,
            "random": RandomState.capture().as_entry(),
            "cuda": torch.cuda.get_rng_state() if self._is_on_gpu else None,
        }

    def before_train(self) -> None:
        """Restore the state `resumed`."""
        if self.resumed is None:
            return
        loader = self._step.data_loader
        is_exact = isinstance(loader, TrainingLoader) and loader.load_state_dict(self.resumed["loader"])
        self._step.start_loader()  # draws a random number
        if not is_exact:
            logger.warning(
                "The numbers of processes, workers or images have changed since the checkpoint: training continues, "
                "but not with the losses of an unbroken run"
            )
            return
        RandomState.of_entry(self.resumed["random"]).restore()
        if self.resumed["cuda"] is not None and self._is_on_gpu:
            torch.cuda.set_rng_state(self.resumed["cuda"])
