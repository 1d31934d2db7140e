"""Copies between the host and a device: many small tensors at once, and without waiting where possible.

A GPU works through a queue. The host waits for all of it when it reads a value, and when it copies from memory that is
not pinned. So values are read together (`download`), and copied from pinned memory (`upload`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from psf.ops import is_traced

__all__ = ["download", "level_sizes", "upload", "upload_together"]


def upload(x: Tensor, device: Any) -> Tensor:
    """The tensor on `device`; the host does not wait for the copy."""
    if x.device.type == "cpu" and torch.device(device).type == "cuda":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


def upload_together(tensors: Sequence[Tensor], device: Any) -> list[Tensor]:
    """As `upload`, for tensors of one type and any shapes, in one copy."""
    if not tensors:
        return []
    return _split(upload(torch.cat([x.flatten() for x in tensors]), device), tensors)


def download(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors on the CPU, in one copy, for which the host waits. Unequal types become the most precise one."""
    if not tensors:
        return []
    return _split(torch.cat([x.flatten() for x in tensors]).cpu(), tensors)


def _split(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    return [part.view(x.shape) for part, x in zip(flat.split([x.numel() for x in like]), like, strict=True)]


def level_sizes(spatial_shapes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """(L, 2) width and height of each level (h, w), with the type and device of `like`. Do not change it in place."""
    sizes = tuple((w, h) for h, w in spatial_shapes)
    # A graph contains the numbers, and a tensor of another kind must not be kept for later calls.
    if is_traced() or torch.compiler.is_compiling() or type(like) is not Tensor:
        return like.new_tensor(sizes)
    return _kept_table(sizes, like.dtype, like.device)


@functools.lru_cache(maxsize=1024)  # a few dozen bytes for each shape of a batch
def _kept_table(rows: tuple[tuple[int, ...], ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a tensor of inference mode could not serve training
        return upload(torch.tensor(rows, dtype=dtype), device)
