"""Tiles of an image, and what becomes one candidate out of theirs: by hand."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from psf.inference import ScoredTile, Tile, fuse_tiles, tile_grid
from tests.candidates import make_candidates

STEP = 4


@given(st.tuples(st.integers(1, 90), st.integers(1, 90)), st.integers(2, 8).map(lambda n: n * STEP), st.floats(0, 0.99))
def test_tiles_cover_the_image_and_overlap(size: tuple[int, int], side: int, overlap: float):
    tiles = tile_grid(size, side, overlap, STEP)
    covered = torch.zeros(size, dtype=torch.int)
    for top, bottom, left, right in tiles:
        assert top % STEP == left % STEP == 0 and bottom <= size[0] and right <= size[1]
        for length, begin, end in ((size[0], top, bottom), (size[1], left, right)):
            assert min(side, length) <= end - begin < side + STEP
        covered[top:bottom, left:right] += 1
    assert covered.min() >= 1
    for axis, length in ((0, size[0]), (2, size[1])):
        spans = sorted({(tile[axis], tile[axis + 1]) for tile in tiles})
        for (_, end), (begin, _) in pairwise(spans):
            # At most a step less than all of the side, where more was asked for.
            assert end - begin > min(overlap * side, side - STEP) - 1
        assert len(spans) == 1 or length > side


def test_no_more_tiles_than_needed():
    assert tile_grid((10, 30), 16, 0.25, 4) == [Tile(0, 10, 0, 16), Tile(0, 10, 12, 30)]
    assert tile_grid((16, 16), 16, 0.5, 4) == [Tile(0, 16, 0, 16)]


def bar(low: int, high: int, tile: Tile, score: float = 0.8) -> list[list[float]]:
    """A mask of one row over a tile: the image's columns from one to before another."""
    return [[score if low <= x < high else 0.0 for x in range(tile.left, tile.right)]]


def scored(
    tile: Tile, things: list[tuple[float, int, int, int]], stuff: tuple[float, int, int] | None = None, **changes: Any
) -> ScoredTile:
    """Things are (probability, class, begin, end); stuff is one class; the confidence is the probability."""
    masks = [bar(low, high, tile) for _, _, low, high in things]
    scores = [p for p, _, _, _ in things]
    if stuff is not None:
        masks, scores = [*masks, bar(*stuff[1:], tile, score=1.0)], [*scores, stuff[0]]
    is_stuff = [stuff is not None] * (stuff is not None)
    candidates = make_candidates(
        scores,
        torch.tensor(masks).reshape(len(masks), 1, tile.right - tile.left),
        things=[*[True] * len(things), *(not one for one in is_stuff)],
        classes=[*(k for _, k, _, _ in things), *[0] * len(is_stuff)],
    )
    confidence = candidates.class_scores
    kept = confidence >= 0.5
    values = {"confidence": confidence.clone(), "masks": candidates.mask_scores > 0.5, "is_kept": kept}
    return ScoredTile(**{"candidates": candidates, **values, "tile": tile, **changes})


LEFT, MIDDLE, RIGHT = Tile(0, 1, 0, 8), Tile(0, 1, 5, 13), Tile(0, 1, 10, 18)
GRID = (1, 18)


def found(tiles: list[ScoredTile], num_best: int = 9) -> list[tuple[float, int, list[int]]]:
    """Probability, class and columns of the things."""
    fused = fuse_tiles(tiles, GRID, is_fixed=True, num_best=num_best)
    things = fused.select(fused.is_thing)
    return [
        (round(p, 4), k, (mask[0] > 0.5).nonzero()[:, 0].tolist())
        for p, k, mask in zip(things.class_scores.tolist(), things.class_indices.tolist(), things.mask_scores)
    ]


def test_a_long_thing_is_one():
    """Its ends have nothing in common but what lies between."""
    tiles = [
        scored(LEFT, [(0.9, 2, 3, 8)]),
        scored(MIDDLE, [(0.4, 2, 5, 13)]),
        scored(RIGHT, [(0.6, 2, 10, 16)]),
    ]
    assert found(tiles) == [(0.9, 2, list(range(3, 16)))]


def test_other_classes_other_places_and_things_of_one_tile_stay_apart():
    tiles = [
        scored(LEFT, [(0.9, 0, 5, 8), (0.8, 1, 5, 8), (0.3, 0, 0, 4)]),
        scored(MIDDLE, [(0.7, 0, 5, 8), (0.6, 0, 5, 7), (0.5, 0, 9, 13)]),
    ]
    # (0.7, 5..8) joins the 0.9; (0.6, 5..7) overlaps it by 2/3, but another of its tile is there already.
    assert found(tiles) == [
        (0.9, 0, [5, 6, 7]),
        (0.8, 1, [5, 6, 7]),
        (0.6, 0, [5, 6]),
        (0.5, 0, [9, 10, 11, 12]),
        (0.3, 0, [0, 1, 2, 3]),
    ]


def test_what_stays():
    """Beside the best: what a tile would keep a part of, weak parts included."""
    tiles = [
        scored(LEFT, [(0.1, 0, 0, 3), (0.45, 1, 0, 4), (0.2, 2, 5, 8)]),
        scored(MIDDLE, [(0.6, 2, 5, 13)]),
    ]
    left = [[(p, k) for p, k, _ in found(tiles, num_best=number)] for number in (0, 1, 2, 3)]
    assert left == [[(0.6, 2)], [(0.6, 2)], [(0.6, 2), (0.45, 1)], [(0.6, 2), (0.45, 1), (0.1, 0)]]
    assert found(tiles, num_best=0)[0][2] == list(range(5, 13))


def test_masks_are_averaged_by_the_distance_from_the_border():
    """Columns 5, 6, 7 lie 3, 2, 1 from the left tile's border, and 1, 2, 3 from the other's: but one row is 1 high."""
    tall_left, tall_right = Tile(0, 9, 0, 8), Tile(0, 9, 5, 13)
    scores = torch.zeros(1, 9, 8)
    one = ScoredTile(
        make_candidates([0.5], scores + 0.6), torch.tensor([0.5]), scores > -1, torch.tensor([True]), tall_left
    )
    other = one._replace(candidates=make_candidates([0.5], scores + 1.0), tile=tall_right)
    mask = fuse_tiles([one, other], (9, 13), is_fixed=True, num_best=9).mask_scores[0]
    expected = [0.6] * 5 + [(3 * 0.6 + 1) / 4, 0.8, (0.6 + 3) / 4] + [1.0] * 5
    assert mask[4].tolist() == pytest.approx(expected)  # the middle row, 5 from top and bottom


def test_stuff_is_put_side_by_side():
    """Where a tile is not sure of the class, its mask counts by the share: 0.2 / 0.8."""
    tiles = [scored(LEFT, [], (0.8, 0, 8)), scored(MIDDLE, [], (0.6, 5, 13)), scored(RIGHT, [], (0.2, 10, 18))]
    fused = fuse_tiles(tiles, GRID, is_fixed=True, num_best=9)
    assert fused.class_scores.tolist() == pytest.approx([0.8]) and fused.is_thing.tolist() == [False]
    # All weights are 1: the grid is one row high.
    expected = [1.0] * 10 + [(1 + 0.25) / 2] * 3 + [0.25] * 5
    assert fused.mask_scores[0, 0].tolist() == pytest.approx(expected)


def test_joint_stuff_is_joined_as_things_are():
    tiles = [scored(LEFT, [(0.9, 0, 5, 8)], (0.8, 0, 8)), scored(MIDDLE, [(0.7, 0, 5, 8)], (0.6, 5, 13))]
    fused = fuse_tiles(tiles, GRID, is_fixed=False, num_best=9)
    assert fused.class_scores.tolist() == pytest.approx([0.9, 0.8]) and fused.is_thing.tolist() == [True, False]
    assert (fused.mask_scores[1, 0] > 0.5).nonzero()[:, 0].tolist() == list(range(13))


def test_boxes_enclose_the_parts():
    tiles = [scored(LEFT, [(0.9, 0, 3, 8)]), scored(MIDDLE, [(0.7, 0, 5, 12)])]
    boxes = ([[0.25, 0.5, 0.3, 0.2]], [[0.5, 0.6, 0.4, 0.2]])  # 0.1..0.4 x 0.4..0.6 and 0.3..0.7 x 0.5..0.7
    tiles = [
        one._replace(candidates=one.candidates._replace(boxes_cxcywh_norm=torch.tensor(box)))
        for one, box in zip(tiles, boxes, strict=True)
    ]
    fused = fuse_tiles(tiles, GRID, is_fixed=True, num_best=9)
    torch.testing.assert_close(fused.boxes_cxcywh_norm, torch.tensor([[0.4, 0.55, 0.6, 0.3]]))


def test_one_tile_is_as_it_was():
    whole = Tile(0, 1, 0, 18)
    one = scored(whole, [(0.9, 0, 0, 5), (0.8, 1, 2, 9)], (0.6, 0, 18))
    fused = fuse_tiles([one], GRID, is_fixed=True, num_best=9)
    for name, a, b in zip(fused._fields, fused, one.candidates, strict=True):
        assert a is b is None or torch.allclose(a, b), name


def test_nothing_at_all():
    tiles = [scored(LEFT, []), scored(Tile(0, 1, 7, 18), [])]
    fused = fuse_tiles(tiles, GRID, is_fixed=True, num_best=9)
    assert fused.class_scores.shape == (0,) and fused.mask_scores.shape == (0, 1, 18)
