"""Candidates and their confidence: s = p^alpha * mean(m over m > 0.5)^beta."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from psf.inference import (
    ImageGeometry,
    MergingThresholds,
    best_class,
    choose_things,
    per_candidate,
    resize_masks,
    score_masks,
    semantic_scores,
    stuff_candidates,
    thing_candidates,
    top_pairs,
    upper_bound,
)
from psf.inference import candidates as confidence_module
from psf.inference.candidates import mask_confidence, resize_in_chunks
from tests.candidates import make_candidates, random_candidates, same_size, thresholds_of
from tests.naive import naive_bilinear

LOGITS = torch.tensor([[0.0, 2.0, -1.0], [3.0, 1.0, 2.5], [-4.0, -3.0, -5.0]])


def test_best_class_by_hand():
    rows, classes, scores = best_class(LOGITS)
    assert rows.tolist() == [0, 1, 2] and classes.tolist() == [1, 0, 1]
    torch.testing.assert_close(scores, torch.tensor([2.0, 3.0, -3.0]).sigmoid())


def test_top_pairs_by_hand():
    rows, classes, scores = top_pairs(LOGITS, 4)
    assert list(zip(rows.tolist(), classes.tolist(), strict=True)) == [(1, 0), (1, 2), (0, 1), (1, 1)]
    torch.testing.assert_close(scores, torch.tensor([3.0, 2.5, 2.0, 1.0]).sigmoid())


@pytest.mark.parametrize("wanted, given", [(0, 0), (9, 9), (100, 9)])
def test_no_more_pairs_than_there_are(wanted, given):
    rows, classes, scores = top_pairs(LOGITS, wanted)
    assert len(rows) == len(classes) == len(scores) == given
    assert len(set(zip(rows.tolist(), classes.tolist(), strict=True))) == given


def test_no_queries():
    for result in (best_class(torch.zeros(0, 3)), top_pairs(torch.zeros(0, 3), 5)):
        assert [len(x) for x in result] == [0, 0, 0]


def test_a_batch_is_its_images():
    batch = torch.stack((LOGITS, -LOGITS))
    for way, one_image in (("best_class", best_class), ("top_pairs", lambda logits: top_pairs(logits, 4))):
        chosen = choose_things(batch, way, 4)
        for b, logits in enumerate(batch):
            for found, expected in zip(chosen, one_image(logits), strict=True):
                assert torch.equal(found[b], expected)


def test_things_of_each_image():
    masks, boxes = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4)
    chosen = choose_things(torch.stack((LOGITS, -LOGITS)), "best_class", 0)
    for b, one in enumerate(thing_candidates(chosen, masks, boxes)):
        assert torch.equal(one.class_scores, chosen.scores[b]) and torch.equal(one.class_indices, chosen.classes[b])
        assert one.is_thing.dtype == torch.bool and one.is_thing.all()
        assert torch.equal(one.mask_scores, masks[b]) and torch.equal(one.boxes_cxcywh_norm, boxes[b])
    assert [one.boxes_cxcywh_norm for one in thing_candidates(chosen, masks, None)] == [None, None]


def score(candidates, geometry, thresholds=None, mask_threshold=0.5, extra_pixels=0.0):
    thresholds = thresholds or thresholds_of(len(candidates.class_scores))
    return score_masks(candidates, geometry, thresholds, mask_threshold=mask_threshold, extra_pixels=extra_pixels)


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
    geometry = ImageGeometry((24, 32), (20, 25), (9, 13))
    whole = score(candidates, geometry)
    before, confidence_module.CHUNK_PIXELS = confidence_module.CHUNK_PIXELS, {"cpu": pixels}
    try:
        chunked = score(candidates, geometry)
    finally:
        confidence_module.CHUNK_PIXELS = before
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
    geometry = ImageGeometry((24, 32), (20, 25), output_size)
    bound = upper_bound(candidates, thresholds, mask_threshold)
    confidence = score(candidates, geometry, thresholds, mask_threshold, extra_pixels).confidence
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
    confidence = score(candidates, ImageGeometry((3, 3), (3, 3), (300, 300)), thresholds_of(2, alpha=0.5)).confidence
    expected = candidates.class_scores.float() ** 0.5
    assert confidence.dtype == torch.float32
    torch.testing.assert_close(confidence, expected, rtol=1e-4, atol=0)


def test_upper_bound_rules_out_empty_masks():
    candidates = make_candidates([0.9, 0.9], [[[0.4, 0.3]], [[0.6, 0.0]]])
    bound = upper_bound(candidates, thresholds_of(2), 0.5)
    assert bound[0] == 0 and bound[1].item() == pytest.approx(0.9 * 0.36, rel=1e-4)


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
    geometry = same_size(5, 7)._replace(output_size=(33, 41))
    assert resize_masks(half.mask_scores, geometry).max() <= half.mask_scores.max().float() * (1 + 1e-6)
    assert semantic_scores(half, torch.zeros(1, dtype=torch.long), 1, geometry).dtype == torch.float32
    bound = upper_bound(half, thresholds_of(1), 0.5)
    assert bound.dtype in (torch.float32, torch.float64) and bound > 0.9 * half.mask_scores.max().float() ** 2 * 0.999


def random_scores(count: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(count, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_same_size_changes_nothing():
    scores = random_scores(3, 4, 5)
    assert torch.equal(resize_masks(scores, same_size(4, 5)), scores)


def test_every_pixel_by_the_formula():
    # A map of 3x4 for a padded image of 24x32, which is enlarged to 40x44; without aligned corners, the pixel centre
    # (i + 0.5) / 40 of the output is (i + 0.5) / 40 of the map; beyond the outer centres the outer values go on.
    scores = random_scores(1, 3, 4)
    resized = resize_masks(scores, ImageGeometry((24, 32), (24, 32), (40, 44)))[0]
    assert resized.shape == (40, 44)
    for row in range(40):
        for column in range(44):
            y = min(max((row + 0.5) * 3 / 40 - 0.5, 0), 2)
            x = min(max((column + 0.5) * 4 / 44 - 0.5, 0), 3)
            expected = naive_bilinear(scores[0, :, :, None], y, x)[0]
            torch.testing.assert_close(resized[row, column], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "geometry, scaled",
    [
        (ImageGeometry((32, 48), (20, 48), (50, 120)), (80, 120)),  # 32 * 50 / 20, 48 * 120 / 48
        (ImageGeometry((10, 16), (7, 11), (5, 5)), (7, 7)),  # 50 / 7 = 7.14, 80 / 11 = 7.27
        (ImageGeometry((10, 16), (9, 9), (10, 13)), (11, 23)),  # 100 / 9 = 11.1, 208 / 9 = 23.1
        (ImageGeometry((10, 16), (7, 16), (6, 16)), (9, 16)),  # 60 / 7 = 8.57
        (ImageGeometry((64, 64), (1, 1), (1, 1)), (64, 64)),
        (ImageGeometry((800, 64), (17, 64), (17, 64)), (800, 64)),
    ],
)
def test_padding_is_cropped_away_after_resizing(geometry, scaled):
    scores = random_scores(2, 4, 6)
    whole = F.interpolate(scores[None], size=scaled, mode="bilinear", align_corners=False)[0]
    height, width = geometry.output_size
    torch.testing.assert_close(resize_masks(scores, geometry), whole[:, :height, :width], rtol=0, atol=0)


@pytest.mark.parametrize("count", [0, 1, 7])
@pytest.mark.parametrize("pixels", [1, 60, 10**6])
def test_chunks_together_are_the_whole(monkeypatch, count, pixels):
    monkeypatch.setattr(confidence_module, "CHUNK_PIXELS", {"cpu": pixels})
    scores, geometry = random_scores(count, 3, 4), ImageGeometry((24, 32), (20, 32), (5, 6))
    chunks = list(resize_in_chunks(scores, geometry))
    assert chunks and sum(len(x) for x in chunks) == count
    assert torch.equal(torch.cat(chunks), resize_masks(scores, geometry))


def test_a_chunk_is_bounded_in_padding_too(monkeypatch):
    # A flat image beside a tall one in the batch: 4x40 pixels of output, 80x40 before cropping.
    made = []
    interpolate = F.interpolate
    monkeypatch.setattr(F, "interpolate", lambda *a, **k: made.append(interpolate(*a, **k)) or made[-1])
    monkeypatch.setattr(confidence_module, "CHUNK_PIXELS", {"cpu": 2 * 80 * 40})
    list(resize_in_chunks(random_scores(6, 10, 5), ImageGeometry((80, 40), (4, 40), (4, 40))))
    assert max(x.numel() for x in made) <= 2 * 80 * 40
