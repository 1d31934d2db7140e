"""The model on several views of an image."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from psf.meta_arch.test_time_augmentation import PanopticSegFormerWithTTA, view_size
from tests.models import RELEASED, SMALL, check_result, make_input, tiny_config, tiny_model

ALL_KEPT = {f"POST_PROCESSOR.{kind}.{key}": 0.0 for kind in ("THINGS", "STUFF") for key in ("T_CNF", "T_KEEP")}
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {**ALL_KEPT},
    "released": {**RELEASED, **ALL_KEPT},
    "small": {**SMALL, **ALL_KEPT},
    "things alone": {"NUM_STUFF_CLASSES": 0, **ALL_KEPT},
    "stuff alone": {"NUM_THING_CLASSES": 0, **ALL_KEPT},
    "argmax": {"POST_PROCESSOR.NAME": "PixelArgmax", **ALL_KEPT},
}


def photo(height: int, width: int, out: tuple[int, int] | None = None) -> dict[str, Any]:
    image = {"image": make_input(height, width, things=0, stuff=0)["image"]}
    return image if out is None else {**image, "height": out[0], "width": out[1]}


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_results_are_the_models_kind(variant: str):
    model = tiny_model(VARIANTS[variant]).eval()
    views = PanopticSegFormerWithTTA(model, min_sizes=(40, 64), max_size=100, flip=True).eval()
    results = views([photo(64, 90, out=(50, 75)), photo(33, 50)])
    check_result(results[0], model, 50, 75)
    check_result(results[1], model, 33, 50)
    assert results[0]["panoptic_seg"][1]


@pytest.mark.parametrize("variant", ["paper", "small"])
@torch.no_grad()
def test_one_view_is_the_model(variant: str):
    """Of the image's own size, which needs no padding: nothing is resized, nothing is fused."""
    model = tiny_model({**VARIANTS[variant], "SIZE_DIVISIBILITY": 32}).double().eval()
    x = photo(64, 96)
    x["image"] = x["image"].double()
    [alone] = model([x])
    [seen] = PanopticSegFormerWithTTA(model, min_sizes=(64,), max_size=96, flip=False)([x])
    assert torch.equal(alone["panoptic_seg"][0], seen["panoptic_seg"][0])
    assert torch.equal(alone["instances"].pred_masks, seen["instances"].pred_masks)
    torch.testing.assert_close(alone["sem_seg"], seen["sem_seg"])


@torch.no_grad()
def test_a_mirror_image_gives_the_mirrored_result():
    """With both views of it, an image and its mirror image are the same."""
    model = tiny_model({**VARIANTS["paper"], "SIZE_DIVISIBILITY": 32}).double().eval()
    views = PanopticSegFormerWithTTA(model, min_sizes=(64,), max_size=96, flip=True)
    image = photo(64, 96)["image"].double()
    [one], [other] = views([{"image": image}]), views([{"image": image.flip(2)}])
    torch.testing.assert_close(one["sem_seg"], other["sem_seg"].flip(2))
    for a, b in zip(one["panoptic_seg"][1], other["panoptic_seg"][1], strict=True):
        assert a == {**b, "score": pytest.approx(a["score"])}
    assert torch.equal(one["panoptic_seg"][0], other["panoptic_seg"][0].flip(1))


@pytest.mark.parametrize(
    ("size", "short", "longest", "expected"),
    [
        ((60, 80), 30, 100, (30, 40)),
        ((80, 60), 90, 60, (60, 45)),
        ((1, 400), 10, 40, (1, 40)),
        ((10, 10), 25, 99, (25, 25)),
    ],
)
def test_view_size(size: tuple[int, int], short: int, longest: int, expected: tuple[int, int]):
    assert view_size(size, short, longest) == expected


def test_keys():
    cfg = tiny_config(TEST__AUG__MIN_SIZES=(32, 48), TEST__AUG__MAX_SIZE=99, TEST__AUG__FLIP=False)
    views = PanopticSegFormerWithTTA(cfg, tiny_model())
    assert (views.min_sizes, views.max_size, views.flip) == ((32, 48), 99, False)


@pytest.mark.parametrize(("sizes", "longest"), [((), 9), ((0,), 9), ((9,), 0)])
def test_no_sizes(sizes: tuple[int, ...], longest: int):
    with pytest.raises(ValueError, match=r"TEST\.AUG\.MIN_SIZES is"):
        PanopticSegFormerWithTTA(tiny_model(), min_sizes=sizes, max_size=longest, flip=True)


def test_joint_queries():
    with pytest.raises(ValueError, match=r'MODEL\.PSF\.QUERIES is "joint".*or TEST\.AUG\.ENABLED to False'):
        PanopticSegFormerWithTTA(tiny_model({"QUERIES": "joint"}), min_sizes=(64,), max_size=96, flip=False)
