"""The model on the tiles of an image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from psf.inference import tight_boxes
from psf.predictions import Candidates
from psf.test_time_augmentation import PanopticSegFormerWithTTA
from tests.models import RELEASED, SMALL, check_result, make_input, tiny_model

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
    segment_map, segments = result["panoptic_seg"]
    areas = {one["isthing"]: one["area"] for one in segments}
    assert len(segments) == 2 and areas[True] + areas[False] == segment_map.numel()
    assert areas[True] == pytest.approx(4 * 56 * 160, rel=0.005)  # enlarging the masks rounds the four corners
    assert (segment_map[84:188, 36:348] == next(one["id"] for one in segments if one["isthing"])).all()
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
    """96 of them, in each second cell; MAX_PER_IMAGE is of the image, not of its tiles or of the parts in them."""
    keys = {"NUM_STUFF_CLASSES": 0, "POST_PROCESSOR.NAME": kind, "TEST.INSTANCE.MAX_PER_IMAGE": 40}
    keys |= {"POST_PROCESSOR.THINGS.T_CNF": t_cnf, "TEST.SEMANTIC_ON": False}
    image = torch.zeros(3, 128, 192)
    image[:, 4::16, 4::16] = torch.linspace(20.0, 90.0, 96).reshape(8, 12)
    image = nn.functional.max_pool2d(image, 7, stride=1, padding=3)
    results = {}
    for size in (0, 64):
        model = build("paper", **keys, **{"TEST.TILES.SIZE": size})
        model.pixel_mean.zero_(), model.pixel_std.fill_(100.0)
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
