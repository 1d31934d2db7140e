"""Tiles of an image, and what becomes one candidate out of theirs: by hand."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from psf.inference import ScoredTile, Tile, fuse_tiles, tile_grid
from psf.meta_arch.test_time_augmentation import PanopticSegFormerWithTTA
from psf.structures import Candidates, tight_boxes
from tests.candidates import make_candidates
from tests.models import RELEASED, SMALL, check_result, make_input, tiny_model

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


ALL_KEPT = {f"POST_PROCESSOR.{kind}.{key}": 0.0 for kind in ("THINGS", "STUFF") for key in ("T_CNF", "T_KEEP")}
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "released": RELEASED,
    "small": SMALL,
    "joint": {"QUERIES": "joint"},
    "things alone": {"NUM_STUFF_CLASSES": 0},
    "stuff alone": {"NUM_THING_CLASSES": 0},
    "argmax": {"POST_PROCESSOR.NAME": "PixelArgmax"},
    "fine maps": {"IN_FEATURES": ["res2", "res3"], "NUM_FEATURE_LEVELS": 2},
}


def photo(height: int, width: int, out: tuple[int, int] | None = None) -> dict[str, Any]:
    image = {"image": make_input(height, width, things=0, stuff=0)["image"]}
    return image if out is None else {**image, "height": out[0], "width": out[1]}


def build(variant: str, **changes: Any):
    keys = {"MODEL__RESNETS__OUT_FEATURES": ["res2", "res3", "res4", "res5"]} if variant == "fine maps" else {}
    return tiny_model({**VARIANTS[variant], **ALL_KEPT, "TEST.TILES.SIZE": 64, **changes}, **keys).eval()


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_results_are_the_models_kind(variant: str):
    model = build(variant)
    results = model([photo(130, 101, out=(260, 202)), photo(40, 200), photo(33, 50)])
    for result, size in zip(results, ((260, 202), (40, 200), (33, 50)), strict=True):
        check_result(result, model, *size)
        assert result["panoptic_seg"][1]


@pytest.mark.parametrize("variant", ["paper", "released", "small", "fine maps"])
@torch.no_grad()
def test_an_image_no_larger_than_a_tile_is_as_without(variant: str):
    """Of sides without padding: there masks end where the image does."""
    tiled, plain = (build(variant, **{"TEST.TILES.SIZE": size, "SIZE_DIVISIBILITY": 32}) for size in (64, 0))
    [one], [other] = tiled([photo(64, 32, (100, 50))]), plain([photo(64, 32, (100, 50))])
    assert torch.equal(one["panoptic_seg"][0], other["panoptic_seg"][0])
    assert one["panoptic_seg"][1] == other["panoptic_seg"][1]
    for name in ("pred_masks", "scores", "pred_classes"):
        torch.testing.assert_close(one["instances"].get(name), other["instances"].get(name))
    torch.testing.assert_close(one["instances"].pred_boxes.tensor, other["instances"].pred_boxes.tensor)
    torch.testing.assert_close(one["sem_seg"], other["sem_seg"])


def lookout(images: torch.Tensor, padding_mask: torch.Tensor | None) -> list[Candidates]:
    """In place of the network: one thing, where the image is bright, and one stuff class where it is not."""
    cells = nn.functional.avg_pool2d(images.mean(1), 8)[0]
    masks = torch.stack((cells > 0, cells <= 0)).float()
    x0, y0, x1, y1 = tight_boxes(masks[:1] > 0)[0][0].tolist()
    box = torch.tensor([[(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], [0.0] * 4])
    box /= torch.tensor([cells.shape[1], cells.shape[0]] * 2)
    return [Candidates(torch.tensor([0.9, 0.8]), torch.tensor([0, 0]), torch.tensor([True, False]), masks, box)]


@pytest.mark.parametrize("boxes", ["mask", "location_decoder"])
@torch.no_grad()
def test_a_thing_across_tiles_is_one_and_in_its_place(monkeypatch: pytest.MonkeyPatch, boxes: str):
    model = build("paper", **{"NUM_STUFF_CLASSES": 1, "TEST.INSTANCE.BOXES": boxes, "POST_PROCESSOR.STUFF.BETA": 0.0})
    monkeypatch.setattr(model, "candidates", lookout)
    image = torch.zeros(3, 128, 192, dtype=torch.uint8)
    image[:, 40:96, 16:176] = 255
    [result] = model([{"image": image, "height": 256, "width": 384}])
    panoptic_seg, segments = result["panoptic_seg"]
    areas = {one["isthing"]: one["area"] for one in segments}
    assert len(segments) == 2 and areas[True] + areas[False] == panoptic_seg.numel()
    assert areas[True] == pytest.approx(4 * 56 * 160, rel=0.005)  # enlarging the masks rounds the four corners
    assert (panoptic_seg[84:188, 36:348] == next(one["id"] for one in segments if one["isthing"])).all()
    torch.testing.assert_close(result["instances"].pred_boxes.tensor, torch.tensor([[32.0, 80, 352, 192]]))


def lattice(images: torch.Tensor, padding_mask: torch.Tensor | None) -> list[Candidates]:
    """In place of the network: a thing for each bright cell of the image, the surer the brighter it is."""
    cells = nn.functional.avg_pool2d(images.mean(1), 8)[0]
    places = (cells > 0).nonzero()
    masks = torch.zeros(len(places), *cells.shape)
    for mask, (row, column) in zip(masks, places.tolist()):
        mask[row, column] = 1
    scores = cells[cells > 0].clamp(max=1)
    return [Candidates(scores, torch.zeros(len(places), dtype=torch.long), scores > 0, masks, None)]


@pytest.mark.parametrize("kind", ["MaskWiseMerging", "PixelArgmax"])
@pytest.mark.parametrize(("t_cnf", "num_segments"), [(0.05, 96), (0.95, 0)])
@torch.no_grad()
def test_many_things_are_as_many_without_tiles(
    monkeypatch: pytest.MonkeyPatch, kind: str, t_cnf: float, num_segments: int
):
    """96 of them, in each second cell; DETECTIONS_PER_IMAGE counts those of the image, not of a tile."""
    keys = {"NUM_STUFF_CLASSES": 0, "POST_PROCESSOR.NAME": kind}
    keys |= {"POST_PROCESSOR.THINGS.T_CNF": t_cnf, "TEST.SEMANTIC_ON": False}
    image = torch.zeros(3, 128, 192)
    image[:, 4::16, 4::16] = torch.linspace(20.0, 90.0, 96).reshape(8, 12)
    image = nn.functional.max_pool2d(image, 7, stride=1, padding=3)
    results = {}
    for size in (0, 64):
        model = build("paper", **keys, **{"TEST.TILES.SIZE": size})
        model.pixel_mean.zero_(), model.pixel_std.fill_(100.0)
        model.post_processor.instance = model.post_processor.instance._replace(max_per_image=40)
        monkeypatch.setattr(model, "candidates", lattice)
        [results[size]] = model([{"image": image}])
        assert len(results[size]["panoptic_seg"][1]) == num_segments
    assert torch.equal(*((one["panoptic_seg"][0] > 0) for one in results.values()))
    plain, tiled = (one["instances"] for one in results.values())
    assert len(plain) == len(tiled) == 40
    torch.testing.assert_close(plain.scores, tiled.scores)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"TEST.TILES.SIZE": 63}, r"TILES\.SIZE is 63: expected 64 pixels or more, or 0"),
        ({"TEST.TILES.OVERLAP": 1.0}, r"TILES\.OVERLAP is 1\.0: expected a share"),
        ({"TEST.TILES.OVERLAP": 0.0}, r"TILES\.OVERLAP is 0\.0: expected a share"),
    ],
)
def test_settings_that_mean_nothing(keys: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        tiny_model(keys)


def test_views_are_not_cut_up():
    with pytest.raises(ValueError, match=r"TEST\.AUG\.ENABLED is True and MODEL\.PSF\.TEST\.TILES\.SIZE is not 0"):
        PanopticSegFormerWithTTA(build("paper"), min_sizes=(40,), max_size=100, flip=False)
