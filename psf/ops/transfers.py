"""Transfers between host and device: one for many tensors, and copies to the device that do not wait for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["copy_to_device", "copy_to_host"]


def copy_to_host(*tensors: Tensor) -> list[np.ndarray]:
    """Copies of tensors of any shapes and types as NumPy arrays, in one transfer: the host waits once.

    For small tensors of one device, since they are concatenated there. bfloat16 has no NumPy type.
    """
    if torch.jit.is_tracing():  # it cannot record views of bytes, and the copies are constants in it anyway
        return [x.detach().cpu().numpy() for x in tensors]
    # A clone, since a contiguous tensor of one element may have any stride, with which it has no view of bytes.
    flat = [x.detach().clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8) for x in tensors]
    parts = torch.cat(flat).cpu().split([len(x) for x in flat])
    # A copy starts at an address that suits its type.
    return [part.clone().view(x.dtype).view(x.shape).numpy() for part, x in zip(parts, tensors, strict=True)]


def copy_to_device(values: Sequence[Any] | np.ndarray, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Numbers of the host as a tensor on the device; the host does not wait for the copy."""
    return torch.as_tensor(values, dtype=dtype).to(device, non_blocking=True)
