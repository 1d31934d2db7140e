"""The two rivals of mask-wise merging, against loops over pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psf.inference import ImageGeometry, class_times_mask, pixel_argmax, resize_masks
from psf.inference import candidates as confidence_module
from psf.structures import Candidates, PanopticSegmentation
from tests.candidates import make_candidates, random_candidates, same_size

FRAME = ImageGeometry((24, 32), (20, 25), (7, 9))


def full(count: int, value: float) -> torch.Tensor:
    return torch.full((count,), value, dtype=torch.float64)


def naive_argmax(values: np.ndarray, allowed: list[int]) -> np.ndarray:
    """(N, H, W) -> per pixel the candidate of the highest value, the first of equals; -1 if none is allowed."""
    _, height, width = values.shape
    winner = np.full((height, width), -1)
    for y in range(height):
        for x in range(width):
            for i in allowed:
                if winner[y, x] < 0 or values[i, y, x] > values[winner[y, x], y, x]:
                    winner[y, x] = i
    return winner


def check(result: PanopticSegmentation, winner: np.ndarray, candidates: Candidates) -> None:
    """The map says the same as `winner` (-1: void), the list describes the map."""
    assert result.panoptic_seg.dtype == torch.int32
    by_id = {0: -1} | {s.id: s.candidate for s in result.segments}
    assert np.array_equal(np.vectorize(by_id.get, otypes=[int])(result.panoptic_seg.numpy()), winner)
    assert [s.id for s in result.segments] == list(range(1, len(result.segments) + 1))
    for segment in result.segments:
        assert segment.area == (winner == segment.candidate).sum() > 0
        assert segment.score == candidates.class_scores[segment.candidate].item()


@given(candidates=random_candidates(highest=1.5), t_cnf=st.sampled_from([0.0, 0.3, 0.7]))
@settings(max_examples=60, deadline=None)
def test_pixel_argmax_equals_naive_loops(candidates, t_cnf):
    values = resize_masks(candidates.mask_scores, FRAME).numpy()
    allowed = [i for i, p in enumerate(candidates.class_scores.tolist()) if p >= t_cnf]
    result = pixel_argmax(candidates, FRAME, full(len(candidates.class_scores), t_cnf))
    check(result, naive_argmax(values, allowed), candidates)


@given(
    candidates=random_candidates(highest=1.5),
    t_cnf=st.sampled_from([0.0, 0.3, 0.7]),
    t_keep=st.sampled_from([0.0, 0.3, 0.8]),
    mask_threshold=st.sampled_from([0.2, 0.5]),
)
@settings(max_examples=100, deadline=None)
def test_class_times_mask_equals_naive_loops(candidates, t_cnf, t_keep, mask_threshold):
    scores, probabilities = resize_masks(candidates.mask_scores, FRAME), candidates.class_scores
    count = len(probabilities)
    values = (scores * probabilities[:, None, None]).numpy()
    winner = naive_argmax(values, [i for i in range(count) if probabilities[i] >= t_cnf])
    for i in range(count):
        mask = scores[i].numpy() > mask_threshold
        won = (winner == i) & mask
        enough = won.sum() >= t_keep * mask.sum()
        winner = np.where(winner == i, np.where(won & enough, i, -1), winner)
    result = class_times_mask(candidates, FRAME, full(count, t_cnf), full(count, t_keep), mask_threshold)
    check(result, winner, candidates)


@given(candidates=random_candidates(), pixels=st.sampled_from([1, 100, 300]))
@settings(max_examples=30, deadline=None)
def test_chunks_change_nothing(candidates, pixels):
    count = len(candidates.class_scores)

    def run() -> list[PanopticSegmentation]:
        cnf, keep = full(count, 0.2), full(count, 0.3)
        return [pixel_argmax(candidates, FRAME, cnf), class_times_mask(candidates, FRAME, cnf, keep, 0.5)]

    whole, before = run(), confidence_module.CHUNK_PIXELS
    confidence_module.CHUNK_PIXELS = {"cpu": pixels}
    try:
        chunked = run()
    finally:
        confidence_module.CHUNK_PIXELS = before
    for a, b in zip(whole, chunked, strict=True):
        assert torch.equal(a.panoptic_seg, b.panoptic_seg) and a.segments == b.segments


def test_the_first_of_equals_wins_across_chunks_too(monkeypatch):
    monkeypatch.setattr(confidence_module, "CHUNK_PIXELS", {"cpu": 1})
    candidates = make_candidates([0.9] * 3, torch.ones(3, 1, 1))
    for result in (
        pixel_argmax(candidates, same_size(1, 1), full(3, 0.25)),
        class_times_mask(candidates, same_size(1, 1), full(3, 0.25), full(3, 0.6), 0.5),
    ):
        assert [s.candidate for s in result.segments] == [0]


class TestByHand:
    #                      left wins  |  a tie  |  both low
    MASKS = (((0.9, 0.6, 0.1),), ((0.5, 0.6, 0.3),))

    def test_argmax_asks_the_mask_alone(self):
        candidates = make_candidates([0.3, 0.9], self.MASKS)
        result = pixel_argmax(candidates, same_size(1, 3), full(2, 0.25))
        assert result.panoptic_seg.tolist() == [[1, 1, 2]]  # the first of equals; low scores win too
        assert [(s.candidate, s.area) for s in result.segments] == [(0, 2), (1, 1)]

    def test_argmax_exactly_t_cnf_is_enough(self):
        candidates = make_candidates([0.25, 0.24], self.MASKS)
        assert pixel_argmax(candidates, same_size(1, 3), full(2, 0.25)).panoptic_seg.tolist() == [[1, 1, 1]]

    def test_product_asks_the_class_too(self):
        candidates = make_candidates([0.3, 0.9], self.MASKS)
        # 0.27 against 0.45: not in the winner's mask (0.5 is not above 0.5); 0.18 against 0.54: won; 0.03 against 0.27.
        result = class_times_mask(candidates, same_size(1, 3), full(2, 0.25), full(2, 0.6), 0.5)
        assert result.panoptic_seg.tolist() == [[0, 1, 0]]
        assert [(s.candidate, s.area) for s in result.segments] == [(1, 1)]

    def test_a_segment_that_won_too_little_is_dropped(self):
        candidates = make_candidates([0.9, 0.8], [[[1, 1, 1, 0, 0]], [[0.9, 0.9, 0.9, 0.9, 0.9]]])
        # The second wins two of its five pixels.
        for t_keep, expected in ((0.4, [1, 1, 1, 2, 2]), (0.41, [1, 1, 1, 0, 0])):
            result = class_times_mask(candidates, same_size(1, 5), full(2, 0.25), full(2, t_keep), 0.5)
            assert result.panoptic_seg.tolist() == [expected]

    def test_exactly_t_keep_is_enough(self):
        masks = torch.ones(2, 10, 10)
        for percent in range(1, 100):
            masks[0].view(-1)[:percent] = 0
            candidates = make_candidates([0.9, 0.8], masks)
            result = class_times_mask(candidates, same_size(10, 10), full(2, 0.25), full(2, percent / 100), 0.5)
            assert [s.area for s in result.segments] == [100 - percent, percent]


@pytest.mark.parametrize("count, score", [(0, 1.0), (2, 0.1), (2, 0.0)])
def test_nothing_to_paint(count, score):
    candidates = make_candidates([score] * count, torch.ones(count, 2, 3))
    results = [
        pixel_argmax(candidates, same_size(4, 6), full(count, 0.25)),
        class_times_mask(candidates, same_size(4, 6), full(count, 0.25), full(count, 0.6), 0.5),
    ]
    for result in results:
        assert result.segments == [] and torch.equal(result.panoptic_seg, torch.zeros(4, 6, dtype=torch.int32))


def test_all_masks_empty():
    candidates = make_candidates([0.9, 0.8], torch.zeros(2, 2, 3))
    winner = pixel_argmax(candidates, same_size(2, 3), full(2, 0.25))
    assert [(s.candidate, s.area) for s in winner.segments] == [(0, 6)]  # argmax knows no empty pixel
    assert class_times_mask(candidates, same_size(2, 3), full(2, 0.25), full(2, 0.6), 0.5).segments == []
