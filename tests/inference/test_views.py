"""Views of an image become one set of candidates: by hand."""

from __future__ import annotations

import pytest
import torch

from psf.inference import ImageGeometry, ScoredView, fuse_views, on_common_grid
from psf.structures import Candidates
from tests.candidates import make_candidates


def bar(low: int, high: int, score: float = 0.8, width: int = 10) -> list[list[float]]:
    """A mask of one row, from one column to before another."""
    return [[score if low <= x < high else 0.0 for x in range(width)]]


def view(things: list[tuple[float, int, list[list[float]]]], stuff: tuple[float, list[list[float]]]) -> ScoredView:
    """Things are (probability, class, mask), the confidence is the probability; one stuff class."""
    scores = [*(p for p, _, _ in things), stuff[0]]
    candidates = make_candidates(
        scores,
        [*(mask for _, _, mask in things), stuff[1]],
        things=[*[True] * len(things), False],
        classes=[*(k for _, k, _ in things), 0],
    )
    return ScoredView(candidates, candidates.class_scores.clone(), candidates.mask_scores > 0.5)


def things_of(candidates: Candidates) -> list[tuple[float, int]]:
    kept = candidates.select(candidates.is_thing)
    return [(round(p, 4), k) for p, k in zip(kept.class_scores.tolist(), kept.class_indices.tolist(), strict=True)]


def test_stuff_is_averaged():
    fused = fuse_views([view([], (0.4, bar(0, 10, 0.6))), view([], (0.8, bar(0, 10, 1.0)))])
    assert fused.class_scores.tolist() == pytest.approx([0.6]) and not fused.is_thing.any()
    torch.testing.assert_close(fused.mask_scores, torch.full((1, 1, 10), 0.8))


def test_the_same_thing_is_one():
    """IoU 4 / 6: one group, the higher probability, masks weighted 0.6 to 0.3."""
    nothing = (0.1, bar(0, 1))
    fused = fuse_views([view([(0.3, 2, bar(1, 6))], nothing), view([(0.6, 2, bar(2, 7))], nothing)])
    assert things_of(fused) == [(0.6, 2)]
    assert fused.is_thing.tolist() == [True, False]
    expected = [0, 0.8 / 3, 0.8, 0.8, 0.8, 0.8, 1.6 / 3, 0, 0, 0]
    assert fused.mask_scores[0, 0].tolist() == pytest.approx(expected)


def test_other_classes_other_places_and_other_things_of_a_view_stay_apart():
    nothing = (0.1, bar(0, 1))
    one = view([(0.9, 0, bar(0, 5)), (0.8, 0, bar(0, 5)), (0.7, 1, bar(0, 5))], nothing)
    other = view([(0.6, 0, bar(5, 10)), (0.5, 0, bar(0, 5)), (0.4, 0, bar(0, 5))], nothing)
    # Of the other view 0.5 joins the first, 0.4 the second, and 0.6 stays alone.
    assert things_of(fuse_views([one, other])) == [(0.9, 0), (0.8, 0), (0.7, 1), (0.6, 0)]


def test_joins_the_one_that_it_overlaps_most():
    nothing = (0.1, bar(0, 1))
    one = view([(0.9, 0, bar(0, 6)), (0.8, 0, bar(2, 8))], nothing)
    fused = fuse_views([one, view([(0.5, 0, bar(2, 7))], nothing)])
    assert things_of(fused) == [(0.9, 0), (0.8, 0)]
    assert fused.mask_scores[0, 0].tolist() == pytest.approx(bar(0, 6)[0])  # untouched


def test_views_may_come_in_any_order():
    nothing = (0.1, bar(0, 1))
    views = [view([(0.9 - i / 10, 0, bar(i, 5 + i)), (0.3 + i / 100, 1, bar(5, 9))], nothing) for i in range(3)]
    one, other = fuse_views(views), fuse_views(views[::-1])
    assert things_of(one) == things_of(other)
    torch.testing.assert_close(one.mask_scores, other.mask_scores)


def test_one_view_is_as_it_was():
    one = view([(0.9, 0, bar(0, 5)), (0.8, 1, bar(2, 9))], (0.5, bar(0, 10)))
    fused = fuse_views([one])
    for name, a, b in zip(fused._fields, fused, one.candidates, strict=True):
        assert a is b is None or torch.allclose(a, b), name


def test_nothing_but_stuff_and_nothing_but_things():
    assert len(fuse_views([view([], (0.5, bar(0, 3)))] * 2).class_scores) == 1
    one = view([(0.9, 0, bar(0, 5))], (0.5, bar(0, 1)))
    rows = one.candidates.is_thing
    alone = ScoredView(one.candidates.select(rows), one.confidence[rows], one.masks[rows])
    assert things_of(fuse_views([alone, alone])) == [(0.9, 0)]


def test_mirror_image_and_padding():
    """A padded, mirrored view of half the grid's size: the padding goes, the left is on the right."""
    masks = torch.zeros(1, 2, 4)
    masks[0, 0, 0], masks[0, :, 3] = 1.0, 9.0  # the last column is padding
    candidates = make_candidates([0.9], masks)._replace(boxes_cxcywh_norm=torch.tensor([[0.2, 0.5, 0.1, 0.3]]))
    geometry = ImageGeometry((2, 4), (2, 3), (2, 3))
    found = on_common_grid(candidates, geometry, is_flipped=True)
    assert found.mask_scores[0].tolist() == [[0, 0, 1], [0, 0, 0]]
    torch.testing.assert_close(found.boxes_cxcywh_norm, torch.tensor([[0.8, 0.5, 0.1, 0.3]]))
    assert on_common_grid(candidates, geometry, is_flipped=False).mask_scores[0].tolist() == [[1, 0, 0], [0, 0, 0]]
