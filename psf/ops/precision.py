"""Convert half precision to float32 where precision matters."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["at_least_float32"]


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision as float32, so that sums over pixels neither overflow nor stall; float64 is unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
