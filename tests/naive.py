"""Oracles of plain Python loops, written from the papers' formulas: slow, and hard to get wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["naive_bilinear", "naive_ms_deform_attn"]


def naive_bilinear(grid: Tensor, y: float, x: float) -> Tensor:
    """Value of a map (h, w, D) at the point (y, x), where pixel i is a sample at i and the world outside is 0."""
    h, w, dim = grid.shape
    value = torch.zeros(dim, dtype=grid.dtype)
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < h and 0 <= column < w:
                value += grid[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return value


def naive_ms_deform_attn(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Equation 3 of Deformable DETR without its projections: sum over levels and points of A_mlqk * x_l(p_mlqk).

    Args:
        value: (B, S, heads, D); locations: (B, Q, heads, L, P, 2) x, y in [0, 1] from edge to edge of a level;
        weights: (B, Q, heads, L, P).

    Returns:
        (B, Q, heads * D).
    """
    batch, queries, heads, _, points, _ = locations.shape
    output = torch.zeros(batch, queries, heads, value.shape[-1], dtype=value.dtype)
    for b in range(batch):
        for q in range(queries):
            for head in range(heads):
                start = 0
                for level, (h, w) in enumerate(shapes):
                    grid = value[b, start : start + h * w, head].view(h, w, -1)
                    start += h * w
                    for point in range(points):
                        x, y = locations[b, q, head, level, point].tolist()
                        sample = naive_bilinear(grid, y * h - 0.5, x * w - 0.5)  # pixel 0 has its centre at 0.5 / h
                        output[b, q, head] += weights[b, q, head, level, point] * sample
    return output.flatten(2)
