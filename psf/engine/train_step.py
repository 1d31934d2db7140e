"""One optimisation step, in mixed precision where asked for, on a GPU or the CPU."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from torch import nn
from torch.optim import Optimizer

__all__ = ["TrainStep", "autocast_dtype"]


class TrainStep(SimpleTrainer):
    """Detectron2's SimpleTrainer and AMPTrainer in one; the latter refuses to run without CUDA.

    Args:
        dtype: of autocast; None trains in full precision. Gradients are scaled for float16 only.
        device_type: "cuda" or "cpu".
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: Optimizer,
        *,
        dtype: torch.dtype | None,
        device_type: str,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self._dtype = dtype
        self._device_type = device_type
        self._scaler = torch.amp.GradScaler(device_type, enabled=dtype == torch.float16)

    def run_step(self) -> None:
        """Forward, backward, log, update.

        Raises:
            FloatingPointError: before any weight changes, if the loss is not finite; it names terms and images.
        """
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with torch.autocast(self._device_type, dtype=self._dtype, enabled=self._dtype is not None):
            losses = self.model(batch)
        total = sum(losses.values())
        if not torch.isfinite(total):
            terms = {name: value.item() for name, value in losses.items() if not torch.isfinite(value)}
            images = [image.get("file_name", "?") for image in batch]
            raise FloatingPointError(
                f"the loss is not finite at iteration {self.iter}: {terms or total}; images {images}"
            )
        self.optimizer.zero_grad()
        self._scaler.scale(total).backward()
        self._write_metrics(losses, data_time)
        self._scaler.step(self.optimizer)  # takes the scale out of the gradients first, so clipping sees true norms
        self._scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "grad_scaler": self._scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):  # empty where the run so far was not in float16
            self._scaler.load_state_dict(state_dict["grad_scaler"])


def autocast_dtype(cfg: CfgNode) -> torch.dtype | None:
    """SOLVER.AMP.DTYPE where SOLVER.AMP.ENABLED.

    Raises:
        ValueError: if it is neither "float16" nor "bfloat16", or if it is "float16" on a CPU.
    """
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    name = cfg.SOLVER.AMP.DTYPE
    if name not in ("float16", "bfloat16"):
        raise ValueError(f'SOLVER.AMP.DTYPE is {name!r}, known are "float16" and "bfloat16"')
    if name == "float16" and torch.device(cfg.MODEL.DEVICE).type == "cpu":
        raise ValueError(
            'SOLVER.AMP.DTYPE is "float16" and MODEL.DEVICE "cpu": a CPU trains in "bfloat16", or in full precision '
            "with SOLVER.AMP.ENABLED False"
        )
    return getattr(torch, name)
