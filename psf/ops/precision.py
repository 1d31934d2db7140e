"""Half precision is for the large matrices; what decides is computed in float32 at least."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["at_least_float32"]


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision as float32, whose sums over pixels neither overflow nor stall; float64 as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
