"""Random tokens of several levels, as the pixel encoder would hand them on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from psf.structures import FeatureTokens

__all__ = ["random_features"]


def random_features(
    shapes: Sequence[tuple[int, int]],
    *,
    batch: int = 2,
    dim: int = 8,
    own_shares: Sequence[tuple[float, float]] | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> FeatureTokens:
    """Tokens and positions from a normal distribution.

    Args:
        shapes: (h, w) of each level.
        batch: B.
        dim: D.
        own_shares: per image the share of height and width that is not padding; None: no padding mask.
        dtype: of the floats.
        seed: of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    num_tokens = sum(h * w for h, w in shapes)
    tokens, position = torch.randn(2, batch, num_tokens, dim, generator=generator, dtype=dtype)
    if own_shares is None:
        return FeatureTokens(tokens, position, list(shapes), None, torch.ones(batch, len(shapes), 2, dtype=dtype))
    masks = [torch.stack([_padding(shape, share) for share in own_shares]) for shape in shapes]
    ratios = [torch.stack(((~m[:, 0]).double().mean(1), (~m[:, :, 0]).double().mean(1)), dim=-1) for m in masks]
    padding_mask = torch.cat([m.flatten(1) for m in masks], dim=1)
    return FeatureTokens(tokens, position, list(shapes), padding_mask, torch.stack(ratios, dim=1).to(dtype))


def _padding(shape: tuple[int, int], share: tuple[float, float]) -> Tensor:
    mask = torch.ones(shape, dtype=torch.bool)
    mask[: math.ceil(shape[0] * share[0]), : math.ceil(shape[1] * share[1])] = False
    return mask
