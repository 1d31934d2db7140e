"""The predictor checks what it is given, and models of any precision cast it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog

from psf.engine import Predictor
from psf.errors import UserError
from tests.models import tiny_config

IMAGE = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    name = "psf_test_predictor"
    MetadataCatalog.get(name)
    cfg = tiny_config(DATASETS__TEST=(name,), MODEL__WEIGHTS="", INPUT__MIN_SIZE_TEST=40, INPUT__MAX_SIZE_TEST=64)
    return Predictor(cfg)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "the image is None, as cv2.imread returns it"),
        ("a.jpg", "the image is of type str: expected a NumPy array"),
        (torch.zeros(3, 40, 60), "the image is of type torch.float32: expected a NumPy array"),
        (np.full((2, 2, 3), "x"), "the image is of type <U1: expected a NumPy array of numbers"),
        (IMAGE[..., 0], r"the shape \(40, 60\): expected \(height, width, 3\).*COLOR_GRAY2BGR"),
        (IMAGE[..., :1], r"the shape \(40, 60, 1\): expected \(height, width, 3\)"),
        (IMAGE[:0], r"the shape \(0, 60, 3\)"),
        (IMAGE.transpose(2, 0, 1), r"the shape \(3, 40, 60\)"),
    ],
)
def test_what_is_no_image(predictor: Predictor, image: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        predictor(image)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_of_any_precision(predictor: Predictor, dtype: torch.dtype) -> None:
    """The scores of a converted model agree with those in float32 up to the precision of its weights."""
    expected = predictor(IMAGE)["sem_seg"]
    predictor.model.to(dtype)
    try:
        found = predictor(IMAGE)["sem_seg"]
    finally:
        predictor.model.float()
    assert (found.float() - expected).abs().max() < 0.1 * expected.max()


def test_devices_must_exist(tmp_path: Path) -> None:
    cfg = tiny_config(DATASETS__TEST=("psf_test_predictor",), MODEL__DEVICE="cuda:99")
    with pytest.raises(UserError, match=r"MODEL\.DEVICE is 'cuda:99', but torch finds"):
        Predictor(cfg)
    with pytest.raises(UserError, match=r"DATASETS\.TEST is empty"):
        Predictor(tiny_config())


def test_views_are_used() -> None:
    """TEST.AUG as in evaluation: the largest view is the size of the image, the results are those of all views."""
    sizes = {"MIN_SIZES": (32, 64), "MAX_SIZE": 96, "FLIP": True, "ENABLED": True}
    keys = {f"TEST__AUG__{name}": value for name, value in sizes.items()}
    predictor = Predictor(tiny_config(DATASETS__TEST=("psf_test_predictor",), MODEL__WEIGHTS="", **keys))
    seen = []
    predictor.model.backbone.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    assert predictor(IMAGE)["panoptic_seg"][0].shape == IMAGE.shape[:2]
    assert [(len(shape), shape[0], min(shape[2:])) for shape in seen] == [(4, 2, 32), (4, 2, 64)]


def test_a_resize_beyond_the_limit_is_refused(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor.aug, "short_edge_length", (20_000,))
    monkeypatch.setattr(predictor.aug, "max_size", 30_000)
    with pytest.raises(UserError, match=r"60 x 40 pixels would be resized to 30000 x 20000, .* lower INPUT.MIN_SIZE"):
        predictor.prepare(IMAGE)
