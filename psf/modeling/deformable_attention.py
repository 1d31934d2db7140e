"""Layers of encoder and decoders: multi-scale deformable attention (Deformable DETR, section 4.1) and the FFN."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from psf.errors import UserError
from psf.ops import AUTO, ms_deform_attn
from psf.ops.precision import at_least_float32, without_autocast
from psf.ops.transfer import level_sizes
from psf.structures import FeatureTokens

__all__ = ["DeformableAttention", "FeedForward", "initial_class_bias"]


class DeformableAttention(nn.Module):
    """Each query samples `num_points` points per head and level around its reference point.

    Args:
        dim: D, channels of queries and tokens.
        num_heads: heads; divides dim.
        num_levels: L, levels of the tokens.
        num_points: P, sampled points per head and level.
        msda: implementation of the sampling, as MODEL.PSF.MSDA.
    """

    def __init__(self, *, dim: int, num_heads: int, num_levels: int, num_points: int, msda: str = AUTO):
        super().__init__()
        if dim % num_heads:
            raise UserError(f"MODEL.PSF.HIDDEN_DIM {dim} is not a multiple of MODEL.PSF.NUM_HEADS {num_heads}")
        self.num_heads, self.num_levels, self.num_points, self.msda = num_heads, num_levels, num_points, msda
        self.sampling_offsets = nn.Linear(dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self._init_weights()

    def _init_weights(self) -> None:
        """Head i samples in the i-th compass direction; its point p is p steps away."""
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

    def values(self, features: FeatureTokens) -> Tensor:
        """The projected tokens to sample, (B, T, heads, D/heads); 0 in padding."""
        value = self.value_proj(features.tokens)
        if features.padding_mask is not None:
            value = value.masked_fill(features.padding_mask[..., None], 0.0)
        return value.unflatten(-1, (self.num_heads, -1))

    def forward(
        self, queries: Tensor, reference_points: Tensor, values: Tensor, spatial_shapes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Sample the tokens around each query's reference point.

        Args:
            queries: (B, Q, D), with their position added.
            reference_points: (B, Q, L, 2) points x y, or (B, Q, L, 4) boxes cx cy w h, in units of the padded level.
            values: from `values`.
            spatial_shapes: (h, w) of each level.

        Returns:
            (B, Q, D), projected; no residual.
        """
        by_head = (*queries.shape[:2], self.num_heads)
        offsets = without_autocast(self.sampling_offsets, queries)
        offsets = at_least_float32(offsets).view(*by_head, self.num_levels, self.num_points, 2)
        weights = self.attention_weights(queries).view(*by_head, -1).softmax(-1)
        weights = weights.view(*by_head, self.num_levels, self.num_points)
        centers = reference_points[:, :, None, :, None, :2]  # (B, Q, 1, L, 1, 2)
        if reference_points.shape[-1] == 2:
            unit = 1.0 / level_sizes(spatial_shapes, offsets)[:, None, :]  # one pixel: (L, 1, 2)
        else:  # the points together span half the box, whatever their number
            unit = reference_points[:, :, None, :, None, 2:] * (0.5 / self.num_points)
        if offsets.device.type == "cpu" and not reference_points.requires_grad:
            # Repeat the small tensors for each point first: broadcasting over the points in the sum is 8 times slower,
            # because the innermost loop has two steps. With gradients, it would change the order of their sum.
            centers, unit = (x.expand(*x.shape[:-2], self.num_points, 2).contiguous() for x in (centers, unit))
        locations = centers + offsets * unit
        return self.output_proj(ms_deform_attn(values, spatial_shapes, locations, weights, configured=self.msda))


class FeedForward(nn.Module):
    """Linear, activation, dropout, linear, dropout; without residual and norm.

    Args:
        dim: channels in and out.
        hidden_dim: channels between.
        activation: None: ReLU, as in encoder and location decoder; GELU in the mask decoder.
        dropout: probability, after the activation and at the end.
    """

    def __init__(self, dim: int, hidden_dim: int, *, activation: nn.Module | None = None, dropout: float = 0.0):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden_dim), nn.Linear(hidden_dim, dim)
        self.activation = activation or nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.dropout(self.activation(self.fc1(x)))))


def initial_class_bias(prior: float = 0.01) -> float:
    """Bias of a class layer for which every class starts with probability `prior` (focal loss, section 4.1)."""
    return math.log(prior / (1 - prior))
