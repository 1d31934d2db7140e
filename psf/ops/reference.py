"""Multi-scale deformable attention as in its formula: the specification of the faster implementations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ms_deform_attn_reference"]


def ms_deform_attn_reference(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Sum of bilinearly sampled values, level by level with `grid_sample`; arguments as in `psf.ops.ms_deform_attn`.

    Computed in the precision of the locations.
    """
    batch, _, heads, dim = value.shape
    queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    precision = sampling_locations.dtype
    grids = 2 * sampling_locations - 1  # grid_sample's range is -1 to 1, edge to edge
    levels = value.to(precision).split([h * w for h, w in spatial_shapes], dim=1)
    samples = []
    for level, (level_value, (h, w)) in enumerate(zip(levels, spatial_shapes, strict=True)):
        # (B, h*w, heads, D) -> (B*heads, D, h, w)
        maps = level_value.permute(0, 2, 3, 1).reshape(batch * heads, dim, h, w)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)  # (B, Q, heads, P, 2) -> (B*heads, Q, P, 2)
        samples.append(F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    sampled = torch.cat(samples, dim=-1)  # (B*heads, D, Q, L*P)
    weights = attention_weights.to(precision).transpose(1, 2).reshape(batch * heads, 1, queries, len(levels) * points)
    output = (sampled * weights).sum(-1)  # (B*heads, D, Q)
    return output.view(batch, heads * dim, queries).transpose(1, 2).to(value.dtype)
