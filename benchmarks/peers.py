"""Deformable attention of installed other packages, with the interface of psf's operator."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["Attend", "Shapes", "other_implementations"]

Shapes = Sequence[tuple[int, int]]
Attend = Callable[[Tensor, Shapes, Tensor, Tensor], Tensor]

_tables: dict[tuple[tuple[tuple[int, int], ...], torch.device], tuple[Tensor, Tensor]] = {}


def other_implementations(device: str) -> dict[str, Attend]:
    """Functions by name of the package, of the packages that are installed and support the device.

    torch-ms-deform-attn has the official kernels, for float32 only; deformops has Triton kernels, for GPUs.
    """
    found: dict[str, Attend] = {}
    if importlib.util.find_spec("torch_ms_deform_attn"):
        official = importlib.import_module("torch_ms_deform_attn").ms_deform_attn

        def attend_officially(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
            locations, weights = locations.float().contiguous(), weights.float().contiguous()
            output: Tensor = official(value.float().contiguous(), *_levels(shapes, value.device), locations, weights)
            return output.to(value.dtype)

        found["torch-ms-deform-attn"] = attend_officially
    if device != "cpu" and importlib.util.find_spec("deformops"):
        msda = importlib.import_module("deformops.registry").msda

        def attend_with_deformops(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
            levels = _levels(shapes, value.device)
            return msda(value, *levels, locations.to(value.dtype), weights, method="linear")

        found["deformops"] = attend_with_deformops
    return found


def _levels(shapes: Shapes, device: torch.device) -> tuple[Tensor, Tensor]:
    """Shapes and first tokens of the levels as tensors; cached, as in models with these operators."""
    key = (tuple(shapes), device)
    if key not in _tables:
        sizes = torch.tensor(shapes)
        starts = (sizes.prod(1).cumsum(0) - sizes.prod(1)).to(device)
        _tables[key] = (sizes.to(device), starts)
    return _tables[key]
