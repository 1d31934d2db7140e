"""Candidate masks for the tests of merging and read-outs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st

from psf.inference import CandidateThresholds, ImageGeometry
from psf.structures import Candidates

__all__ = ["make_candidates", "random_candidates", "same_size", "thresholds_of"]


def make_candidates(
    scores: Sequence[float], masks: Any, *, things: Sequence[bool] | None = None, classes: Sequence[int] | None = None
) -> Candidates:
    """N candidates; masks (N, h, w) as nested lists or a tensor. Default: all of them things of class 0."""
    count = len(scores)
    return Candidates(
        class_scores=torch.tensor(scores, dtype=torch.float32),
        class_indices=torch.tensor(classes or [0] * count, dtype=torch.long),
        is_thing=torch.tensor([True] * count if things is None else list(things), dtype=torch.bool),
        mask_scores=torch.as_tensor(masks, dtype=torch.float32),
        boxes_cxcywh_norm=None,
    )


def same_size(height: int, width: int) -> ImageGeometry:
    """No padding, no resizing."""
    return ImageGeometry((height, width), (height, width), (height, width))


def thresholds_of(count: int, **values: float) -> CandidateThresholds:
    """The same four numbers for each of `count` candidates; defaults as in the paper recipe's things."""
    numbers = {"alpha": 1.0, "beta": 2.0, "t_cnf": 0.25, "t_keep": 0.6, **values}
    return CandidateThresholds(**{k: torch.full((count,), v, dtype=torch.float64) for k, v in numbers.items()})


@st.composite
def random_candidates(draw: st.DrawFn, max_count: int = 6, highest: float = 1.0) -> Candidates:
    """Up to `max_count` candidates of both kinds; blobs and noise, scores up to `highest`."""
    count, height, width = draw(st.integers(0, max_count)), draw(st.integers(1, 6)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    scores = highest * torch.rand(count, height, width, generator=generator)
    scores = torch.where(torch.rand(count, 1, 1, generator=generator) < 0.2, 0.0, scores)  # some are empty
    return Candidates(
        class_scores=torch.rand(count, generator=generator),
        class_indices=torch.randint(0, 2, (count,), generator=generator),
        is_thing=torch.rand(count, generator=generator) < 0.5,
        mask_scores=scores,
        boxes_cxcywh_norm=None,
    )
