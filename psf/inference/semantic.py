"""Semantic scores from the same masks."""

from __future__ import annotations

import torch
from torch import Tensor

from psf.inference.resizing import Frame, resize_masks
from psf.precision import at_least_float32
from psf.predictions import Candidates

__all__ = ["semantic_scores"]


def semantic_scores(candidates: Candidates, channels: Tensor, num_channels: int, frame: Frame) -> Tensor:
    """For each class, the highest class probability times mask score of its candidates.

    Args:
        candidates: N of them.
        channels: (N,) output channel of each candidate.
        num_channels: channels of the output; one without candidate is 0.
        frame: from which size to which.

    Returns:
        (num_channels, H, W), float32 at least, >= 0. The maximum is taken before the masks are resized.
    """
    weighted = at_least_float32(candidates.mask_scores) * candidates.class_scores[:, None, None]
    maps = weighted.new_zeros(num_channels, *weighted.shape[1:])
    index = channels[:, None, None].expand_as(weighted)
    maps = torch.scatter_reduce(maps, 0, index, weighted, reduce="amax")
    return resize_masks(maps, frame)
