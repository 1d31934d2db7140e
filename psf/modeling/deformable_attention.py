"""Multi-scale deformable attention as a module: what to sample, and how much of it (Deformable DETR, section 4.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from psf.ops import ms_deform_attn
from psf.predictions import FeatureTokens

__all__ = ["DeformableAttention"]


class DeformableAttention(nn.Module):
    """Each query looks at `num_points` points per head and level around its reference.

    Args:
        dim: D, channels of queries and tokens.
        num_heads: heads; divides dim.
        num_levels: L, levels of the tokens.
        num_points: P, sampled points per head and level.
    """

    def __init__(self, *, dim: int, num_heads: int, num_levels: int, num_points: int):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"MODEL.PSF.HIDDEN_DIM {dim} is not a multiple of MODEL.PSF.NUM_HEADS {num_heads}")
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.sampling_offsets = nn.Linear(dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self._init_weights()

    def _init_weights(self) -> None:
        """Head i starts by looking in the i-th compass direction, point p at p times the unit step."""
        for linear in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(linear.weight)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
        for linear in (self.attention_weights, self.value_proj, self.output_proj):
            nn.init.zeros_(linear.bias)
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=-1)  # (heads, 2)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1)
        bias = directions[:, None, None, :] * steps[None, None, :, None]  # (heads, 1, P, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.expand(-1, self.num_levels, -1, -1).flatten())

    def forward(self, queries: Tensor, references: Tensor, features: FeatureTokens) -> Tensor:
        """Attend to `features.tokens`.

        Args:
            queries: (B, Q, D), position included.
            references: (B, Q, L, 2) points x y, or (B, Q, L, 4) boxes cx cy w h, in units of the padded level.
            features: what is attended to; padded tokens count as 0.

        Returns:
            (B, Q, D), projected; no residual.
        """
        batch, num_queries, _ = queries.shape
        by_head = (batch, num_queries, self.num_heads)
        value = self.value_proj(features.tokens)
        if features.padding_mask is not None:
            value = value.masked_fill(features.padding_mask[..., None], 0.0)
        value = value.view(batch, -1, self.num_heads, value.shape[-1] // self.num_heads)  # (B, T, heads, D/heads)
        offsets = self.sampling_offsets(queries).view(*by_head, self.num_levels, self.num_points, 2)
        # Half precision, of autocast or of the model, would misplace the points by whole pixels.
        offsets = offsets.to(torch.promote_types(offsets.dtype, torch.float32))
        weights = self.attention_weights(queries).view(*by_head, -1).softmax(-1)
        weights = weights.view(*by_head, self.num_levels, self.num_points)
        centres = references[:, :, None, :, None, :2]  # (B, Q, 1, L, 1, 2)
        if references.shape[-1] == 2:
            sizes = [(w, h) for h, w in features.spatial_shapes]
            unit = (
                1.0 / torch.tensor(sizes, dtype=offsets.dtype, device=offsets.device)[:, None, :]
            )  # one pixel: (L, 1, 2)
        else:  # the points together span half the box, whatever their number
            unit = references[:, :, None, :, None, 2:] * (0.5 / self.num_points)
        return self.output_proj(ms_deform_attn(value, features.spatial_shapes, centres + offsets * unit, weights))
