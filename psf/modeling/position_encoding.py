"""Sine encoding of positions (as in the released code), and the positions of padded tokens."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from psf.ops.transfer import level_sizes
from psf.structures import FeatureTokens

__all__ = ["resize_padding_mask", "sine_point_encoding", "sine_position_encoding", "token_centers", "valid_ratio"]

TEMPERATURE = 10000.0


def sine_position_encoding(padding_mask: Tensor, dim: int) -> Tensor:
    """Encode each pixel's row and column, counted over the unpadded part and scaled to (0, 2 pi).

    Args:
        padding_mask: (B, h, w), True where padded.
        dim: channels of the encoding, a multiple of 4; the first half encodes y, the second x.

    Returns:
        (B, dim, h, w) float32; rows and columns are not counted in padding.
    """
    valid = (~padding_mask).float()
    encoded = [_encode(valid, axis, dim // 2) for axis in (1, 2)]
    return torch.cat(encoded, dim=-1).permute(0, 3, 1, 2)  # (B, h, w, dim) -> (B, dim, h, w)


def sine_point_encoding(points: Tensor, dim: int) -> Tensor:
    """The same encoding of any points: (..., 2) x and y in [0, 1] of the unpadded image -> (..., dim)."""
    x, y = points.unbind(-1)
    return torch.cat((_sines(y, dim // 2), _sines(x, dim // 2)), dim=-1)


def token_centers(features: FeatureTokens) -> Tensor:
    """(B, T, 2): x and y of the center of each token's pixel, in [0, 1] of the unpadded image; more in padding."""
    dtype, device = features.valid_ratios.dtype, features.valid_ratios.device
    sizes = level_sizes(features.spatial_shapes, features.valid_ratios)
    centers = []
    for level, (h, w) in enumerate(features.spatial_shapes):
        y, x = torch.meshgrid(
            torch.arange(h, dtype=dtype, device=device) + 0.5,
            torch.arange(w, dtype=dtype, device=device) + 0.5,
            indexing="ij",
        )
        grid = torch.stack((x, y), dim=-1).view(1, h * w, 2)
        centers.append(grid / (features.valid_ratios[:, None, level] * sizes[level]))
    return torch.cat(centers, dim=1)


def resize_padding_mask(padding_mask: Tensor | None, level: Tensor) -> Tensor:
    """(B, H, W) -> (B, h, w), by the nearest pixel; all False where nothing is padded."""
    if padding_mask is None:
        return torch.zeros(level.shape[0], *level.shape[2:], dtype=torch.bool, device=level.device)
    return F.interpolate(padding_mask[:, None].float(), size=level.shape[2:])[:, 0].bool()


def valid_ratio(padding_mask: Tensor) -> Tensor:
    """(B, h, w) -> (B, 2): unpadded share of the first row and of the first column."""
    valid = (~padding_mask).float()
    return torch.stack((valid[:, 0, :].mean(1), valid[:, :, 0].mean(1)), dim=-1)


# Always float32, and in this order of operations: in rows and columns that are all padding the count is 0, so the
# position is about -0.5 / 1e-6 and its sine depends on the last bit of every step. Checkpoints were trained with these
# values.
def _encode(valid: Tensor, axis: int, num_features: int) -> Tensor:
    count = valid.cumsum(axis)
    last = count.narrow(axis, count.shape[axis] - 1, 1)
    return _sines((count - 0.5) / (last + 1e-6), num_features)


def _sines(position: Tensor, num_features: int) -> Tensor:
    """(...) positions in [0, 1] -> (..., num_features), sine and cosine in turn."""
    angle = position * (2 * math.pi)
    index = torch.arange(num_features, dtype=position.dtype, device=position.device)
    frequency = TEMPERATURE ** (2 * torch.div(index, 2, rounding_mode="floor") / num_features)
    phase = angle[..., None] / frequency
    return torch.stack((phase[..., 0::2].sin(), phase[..., 1::2].cos()), dim=-1).flatten(-2)
