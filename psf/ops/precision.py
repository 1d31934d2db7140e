"""Convert half precision to float32 where precision matters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["at_least_float32", "shared_pixels", "without_autocast"]


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision as float32, so that sums over pixels neither overflow nor stall; float64 is unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def shared_pixels(masks: Tensor, others: Tensor) -> Tensor:
    """(N, P) and (M, P) float32 of 0 and 1 -> (N, M) number of common pixels, exact also under autocast."""
    with torch.autocast(masks.device.type, enabled=False):
        return masks @ others.T


def without_autocast(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a layer in the precision of its weights, also under autocast: for outputs that decide something.

    Decisions are which query or token is chosen or matched, and where to sample. In half precision, scores of different
    queries become equal, and positions are off by whole pixels.
    """
    with torch.autocast(x.device.type, enabled=False):
        output: Tensor = layer(x.to(next(layer.parameters()).dtype))
    return output
