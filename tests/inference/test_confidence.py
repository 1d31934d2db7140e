"""How much a candidate is to be believed: s = p^alpha * mean(m over m > 0.5)^beta."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psf.inference import Frame, MergingThresholds, per_candidate, resizing, score_masks, upper_bound
from psf.inference.confidence import mask_confidence
from tests.candidates import make_candidates, random_candidates, same_size, thresholds_of


def score(candidates, frame, thresholds=None, mask_threshold=0.5, extra_pixels=0.0):
    thresholds = thresholds or thresholds_of(len(candidates.class_scores))
    return score_masks(candidates, frame, thresholds, mask_threshold=mask_threshold, extra_pixels=extra_pixels)


class TestByHand:
    MASK = ((0.9, 0.7, 0.5), (0.4, 0.6, 0.0))  # above 0.5: 0.9, 0.7, 0.6; a score of exactly 0.5 is outside

    def test_mean_over_the_mask(self):
        scored = score(make_candidates([0.8], [self.MASK]), same_size(2, 3))
        assert scored.masks.tolist() == [[[True, True, False], [False, True, False]]]
        assert scored.area.tolist() == [3]
        assert scored.confidence.item() == pytest.approx(0.8 * (2.2 / 3) ** 2, rel=1e-6)
        assert scored.confidence.dtype == torch.float32

    def test_exponents(self):
        thresholds = thresholds_of(1, alpha=0.5, beta=3.0)
        scored = score(make_candidates([0.64], [self.MASK]), same_size(2, 3), thresholds)
        assert scored.confidence.item() == pytest.approx(0.8 * (2.2 / 3) ** 3, rel=1e-6)

    def test_extra_pixels_of_the_released_code(self):
        scored = score(make_candidates([0.8], [self.MASK]), same_size(2, 3), extra_pixels=1.0)
        assert scored.confidence.item() == pytest.approx(0.8 * (2.2 / 4) ** 2, rel=1e-6)

    def test_another_threshold(self):
        scored = score(make_candidates([0.8], [self.MASK]), same_size(2, 3), mask_threshold=0.65)
        assert scored.area.tolist() == [2]
        assert scored.confidence.item() == pytest.approx(0.8 * 0.8**2, rel=1e-6)

    @pytest.mark.parametrize("alpha, beta", [(1.0, 2.0), (0.0, 0.0)])
    def test_empty_masks_have_no_confidence(self, alpha, beta):
        candidates = make_candidates([0.9, 0.9], [[[0.5, 0.5]], [[0.0, 0.0]]])
        scored = score(candidates, same_size(1, 2), thresholds_of(2, alpha=alpha, beta=beta))
        assert scored.confidence.tolist() == [0.0, 0.0] and scored.area.tolist() == [0, 0]

    def test_unbounded_scores(self):
        scored = score(make_candidates([0.5], [[[3.0, 1.0]]]), same_size(1, 2))
        assert scored.confidence.item() == pytest.approx(0.5 * 4)

    def test_no_candidates(self):
        scored = score(make_candidates([], torch.zeros(0, 2, 3)), same_size(4, 6))
        assert scored.masks.shape == (0, 4, 6) and scored.area.shape == scored.confidence.shape == (0,)


def test_each_kind_has_its_numbers():
    things, stuff = MergingThresholds(1.0, 2.0, 0.25, 0.6), MergingThresholds(0.5, 3.0, 0.3, 0.8)
    each = per_candidate(torch.tensor([True, False, True]), things, stuff)
    assert each.alpha.tolist() == [1.0, 0.5, 1.0] and each.beta.tolist() == [2.0, 3.0, 2.0]
    assert each.t_cnf.tolist() == [0.25, 0.3, 0.25] and each.t_keep.tolist() == [0.6, 0.8, 0.6]
    assert each.t_keep.dtype == torch.float64
    none = per_candidate(torch.zeros(0, dtype=torch.bool), things, stuff)
    assert [len(x) for x in none] == [0, 0, 0, 0]


def test_confidence_uses_each_candidates_exponents():
    p, total, area = torch.tensor([0.25, 0.25]), torch.tensor([4.0, 4.0]), torch.tensor([8, 8])
    alpha, beta = torch.tensor([1.0, 0.5]), torch.tensor([2.0, 1.0])
    assert mask_confidence(p, total, area, alpha, beta, 0.0).tolist() == [0.25 * 0.25, 0.5 * 0.5]


@given(candidates=random_candidates(highest=2.0), pixels=st.sampled_from([1, 50, 200]))
@settings(max_examples=30, deadline=None)
def test_chunks_change_nothing(candidates, pixels):
    frame = Frame((24, 32), (20, 25), (9, 13))
    whole = score(candidates, frame)
    before, resizing.CHUNK_PIXELS = resizing.CHUNK_PIXELS, {"cpu": pixels}
    try:
        chunked = score(candidates, frame)
    finally:
        resizing.CHUNK_PIXELS = before
    for a, b in zip(whole, chunked, strict=True):
        assert torch.equal(a, b)


@given(
    candidates=random_candidates(highest=2.0),
    output_size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    exponents=st.tuples(st.sampled_from([0.0, 0.3, 1.0, 2.0]), st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.0])),
    mask_threshold=st.sampled_from([0.0, 0.5, 0.9]),
    extra_pixels=st.sampled_from([0.0, 1.0]),
)
@settings(max_examples=150, deadline=None)
def test_upper_bound_is_never_below(candidates, output_size, exponents, mask_threshold, extra_pixels):
    thresholds = thresholds_of(len(candidates.class_scores), alpha=exponents[0], beta=exponents[1])
    frame = Frame((24, 32), (20, 25), output_size)
    bound = upper_bound(candidates, thresholds, mask_threshold)
    confidence = score(candidates, frame, thresholds, mask_threshold, extra_pixels).confidence
    assert (bound >= confidence).all()


def test_upper_bound_where_only_the_class_counts():
    # The bound is computed in float64, the confidence rounded to float32: upwards for about half of these.
    candidates = make_candidates(torch.linspace(0.01, 0.99, 99).tolist(), torch.ones(99, 1, 1))
    thresholds = thresholds_of(99, alpha=0.3, beta=0.0)
    bound, scored = upper_bound(candidates, thresholds, 0.5), score(candidates, same_size(1, 1), thresholds)
    assert (bound >= scored.confidence).all()


@pytest.mark.parametrize("half", [("class_scores",), ("class_scores", "mask_scores")])
def test_half_precision_neither_overflows_nor_coarsens(half):
    # 90,000 pixels of score 1: their number is beyond float16. The classes are neighbours in float16.
    candidates = make_candidates([0.5, 0.5 + 2**-11], torch.ones(2, 3, 3))
    candidates = candidates._replace(**{name: getattr(candidates, name).half() for name in half})
    confidence = score(candidates, Frame((3, 3), (3, 3), (300, 300)), thresholds_of(2, alpha=0.5)).confidence
    expected = candidates.class_scores.float() ** 0.5
    assert confidence.dtype == torch.float32
    torch.testing.assert_close(confidence, expected, rtol=1e-4, atol=0)


def test_upper_bound_rules_out_empty_masks():
    candidates = make_candidates([0.9, 0.9], [[[0.4, 0.3]], [[0.6, 0.0]]])
    bound = upper_bound(candidates, thresholds_of(2), 0.5)
    assert bound[0] == 0 and bound[1].item() == pytest.approx(0.9 * 0.36, rel=1e-4)
