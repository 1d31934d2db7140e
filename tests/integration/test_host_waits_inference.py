"""How often the host waits for the device at test: a few times per image, whatever the batch and the layers."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from psf.meta_arch.test_time_augmentation import PanopticSegFormerWithTTA
from psf.ops.transfer import download_arrays
from tests.host_waits import count_host_waits
from tests.models import RECIPES, make_input, tiny_model

ALL_KEPT = {f"POST_PROCESSOR.{kind}.{key}": 0.0 for kind in ("THINGS", "STUFF") for key in ("T_CNF", "T_KEEP")}
KEYS: dict[str, dict[str, Any]] = {
    **{name: {**recipe, **ALL_KEPT} for name, recipe in RECIPES.items()},
    "joint": {"QUERIES": "joint", **ALL_KEPT},
    "nms": {"TEST.INSTANCE.NMS_THRESH": 0.3, **ALL_KEPT},
    "argmax": {"POST_PROCESSOR.NAME": "PixelArgmax", **ALL_KEPT},
    "heuristic": {"POST_PROCESSOR.NAME": "ClassTimesMask", **ALL_KEPT},
}
PER_IMAGE, PER_TILE = 4, 2
DEEP = {
    "PIXEL_ENCODER.NUM_LAYERS": 4,
    "LOCATION_DECODER.NUM_LAYERS": 4,
    "MASK_DECODER.NUM_THING_LAYERS": 4,
    "MASK_DECODER.NUM_STUFF_LAYERS": 5,
}


@pytest.fixture(autouse=True)
def painting_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks are painted on the CPU as on a GPU."""
    monkeypatch.setattr("psf.inference.post_processor.paints_on_device", lambda masks: True)


def images(count: int) -> list[dict[str, Any]]:
    sizes = [(96, 128), (80, 120), (70, 128)]
    return [make_input(*sizes[seed % 3], things=3, stuff=2, seed=seed) for seed in range(count)]


def count(model: nn.Module, inputs: list[dict[str, Any]]) -> tuple[int, str]:
    """The number of waits, and their lines; after a first call, which may fill caches."""
    with torch.no_grad():
        model(inputs)
        with count_host_waits() as waits:
            results = model(inputs)
    for result in results:
        assert result["sem_seg"].dim() == 3
        assert result["panoptic_seg"][1] and len(result["instances"])
    return waits.total, str(waits)


@pytest.mark.parametrize("name", KEYS)
def test_an_image(name: str):
    model = tiny_model(KEYS[name]).eval()
    number, lines = count(model, images(1))
    assert number <= PER_IMAGE, lines
    assert count(model, images(3))[0] <= 3 * number


@pytest.mark.parametrize("name", RECIPES)
def test_layers_add_none(name: str):
    shallow, deep = (count(tiny_model({**KEYS[name], **more}).eval(), images(1))[0] for more in ({}, DEEP))
    assert shallow == deep


@pytest.mark.parametrize("name", [*RECIPES, "joint", "nms"])
def test_tiles(name: str):
    model = tiny_model({**KEYS[name], "TEST.TILES.SIZE": 64}).eval()
    number, lines = count(model, images(1))
    assert number <= PER_IMAGE + PER_TILE * 6, lines  # 2 x 3 tiles
    more, lines = count(model, [make_input(160, 224, things=3, stuff=2)])  # 3 x 4 tiles or more
    assert more <= number, lines  # the tiles themselves need no wait


def test_views():
    """Test-time augmentation: a wait per view to choose its things, two to fuse them."""
    model = PanopticSegFormerWithTTA(tiny_model(KEYS["paper"]).eval(), min_sizes=(64, 96), max_size=200, flip=True)
    number, lines = count(model, images(1))
    assert number <= PER_IMAGE + PER_TILE * 4, lines


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", KEYS)
def test_an_image_on_a_gpu(name: str):
    """torch's own count of synchronizations, for the results of given candidates."""
    model = tiny_model(KEYS[name]).eval().cuda()
    with torch.no_grad():
        candidates = list(model.candidates_by_image(images(2)))
        for one in candidates:
            model.result(*one)
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                for one in candidates:
                    model.result(*one)
            finally:
                torch.cuda.set_sync_debug_mode("default")
    messages = [f"{one.filename}:{one.lineno}" for one in caught if "synchroniz" in str(one.message)]
    assert len(messages) <= PER_IMAGE * 2, messages


def test_the_counter_sees_the_transfers():
    with count_host_waits() as waits:
        download_arrays(torch.zeros(3), torch.zeros(2))
    assert waits.total == 1
