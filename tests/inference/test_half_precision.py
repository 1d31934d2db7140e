"""What is decided in half precision is decided in float32."""

from __future__ import annotations

import pytest
import torch

from psf.inference import best_class, resize_masks, semantic_scores, stuff_candidates, top_pairs, upper_bound
from tests.candidates import make_candidates, same_size, thresholds_of

HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALF)
def test_probabilities(dtype: torch.dtype) -> None:
    logits = torch.randn(50, 80, generator=torch.Generator().manual_seed(0)).to(dtype)
    _, classes, scores = best_class(logits)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, logits.float().sigmoid().amax(-1)) and torch.equal(classes, logits.argmax(-1))
    assert top_pairs(logits, 100)[2].dtype == torch.float32
    assert stuff_candidates(logits[:, 0], torch.zeros(50, 2, 2)).class_scores.dtype == torch.float32


@pytest.mark.parametrize("dtype", HALF)
def test_masks(dtype: torch.dtype) -> None:
    candidates = make_candidates([0.9], torch.full((1, 5, 7), 0.55))
    half = candidates._replace(mask_scores=candidates.mask_scores.to(dtype))
    frame = same_size(5, 7)._replace(output_size=(33, 41))
    assert resize_masks(half.mask_scores, frame).max() <= half.mask_scores.max().float() * (1 + 1e-6)
    assert semantic_scores(half, torch.zeros(1, dtype=torch.long), 1, frame).dtype == torch.float32
    bound = upper_bound(half, thresholds_of(1), 0.5)
    assert bound.dtype in (torch.float32, torch.float64) and bound > 0.9 * half.mask_scores.max().float() ** 2 * 0.999
