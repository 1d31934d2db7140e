"""Semantic scores by hand."""

from __future__ import annotations

import torch

from psf.inference import Frame, semantic_scores
from tests.candidates import make_candidates, same_size


def test_highest_product_of_each_class():
    candidates = make_candidates([0.5, 0.9, 1.0], [[[1.0, 0.2]], [[0.5, 0.4]], [[0.3, 0.0]]])
    scores = semantic_scores(candidates, torch.tensor([2, 2, 0]), 4, same_size(1, 2))
    # Class 2: left max(0.5 * 1, 0.9 * 0.5) = 0.5, right max(0.1, 0.36); class 0: 0.3 and 0; classes 1 and 3 have none.
    expected = torch.tensor([[[0.3, 0.0]], [[0.0, 0.0]], [[0.5, 0.36]], [[0.0, 0.0]]])
    torch.testing.assert_close(scores, expected)
    assert scores.dtype == torch.float32


def test_resized_to_the_output():
    candidates = make_candidates([1.0], torch.rand(1, 3, 4))
    scores = semantic_scores(candidates, torch.tensor([0]), 1, Frame((24, 32), (20, 32), (10, 16)))
    assert scores.shape == (1, 10, 16)


def test_no_candidates():
    candidates = make_candidates([], torch.zeros(0, 2, 3))
    scores = semantic_scores(candidates, torch.zeros(0, dtype=torch.long), 3, same_size(4, 6))
    assert torch.equal(scores, torch.zeros(3, 4, 6))
