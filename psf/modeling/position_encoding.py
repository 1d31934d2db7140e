"""Sine encoding of a pixel's place (spec of the released model, B1.4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["sine_position_encoding"]

TEMPERATURE = 10000.0


def sine_position_encoding(padding_mask: Tensor, dim: int) -> Tensor:
    """Encode each pixel's row and column, counted over the unpadded part and scaled to (0, 2 pi).

    Args:
        padding_mask: (B, h, w), True where padded.
        dim: channels of the encoding, a multiple of 4; the first half encodes y, the second x.

    Returns:
        (B, dim, h, w) float32; in padding the count stands still.
    """
    valid = (~padding_mask).float()
    encoded = [_encode(valid, axis, dim // 2) for axis in (1, 2)]
    return torch.cat(encoded, dim=-1).permute(0, 3, 1, 2)  # (B, h, w, dim) -> (B, dim, h, w)


def _encode(valid: Tensor, axis: int, num_features: int) -> Tensor:
    count = valid.cumsum(axis)
    last = count.narrow(axis, count.shape[axis] - 1, 1)
    angle = (count - 0.5) / (last + 1e-6) * (2 * math.pi)
    index = torch.arange(num_features, dtype=torch.float32, device=valid.device)
    frequency = TEMPERATURE ** (2 * torch.div(index, 2, rounding_mode="floor") / num_features)
    phase = angle[..., None] / frequency  # (B, h, w, num_features)
    return torch.stack((phase[..., 0::2].sin(), phase[..., 1::2].cos()), dim=-1).flatten(-2)
