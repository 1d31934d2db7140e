"""Prediction heads of the location decoder, and how a box is corrected (Deformable DETR, appendix A.4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["initial_class_bias", "inverse_sigmoid", "mlp_head"]


def initial_class_bias(prior: float = 0.01) -> float:
    """Bias of a class layer for which every class starts with probability `prior` (focal loss, section 4.1)."""
    return math.log(prior / (1 - prior))


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """The logit of x in [0, 1], finite at its ends."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def mlp_head(dim: int, num_outputs: int) -> nn.Sequential:
    """Three layers, D -> D -> D -> `num_outputs`, with ReLUs between; its outputs start at 0."""
    last = nn.Linear(dim, num_outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    hidden = [layer for _ in range(2) for layer in (nn.Linear(dim, dim), nn.ReLU())]
    return nn.Sequential(*hidden, last)
