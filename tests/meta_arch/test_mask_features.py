"""The model with MASK_FEATURE: training and results at the finer stride, with and without FINE_FEATURE."""

from __future__ import annotations

import pytest
import torch

from tests.models import SMALL, check_result, make_input, tiny_config, tiny_model, total

ALONE = {**SMALL, "FINE_FEATURE": "", "MASK_FEATURE": "res2"}
WITH_FINE_LEVEL = {**SMALL, "IN_FEATURES": ["res4", "res5"], "FINE_FEATURE": "res3", "MASK_FEATURE": "res2"}
RECIPES = pytest.mark.parametrize("recipe", [ALONE, WITH_FINE_LEVEL], ids=["alone", "with a fine level"])


@RECIPES
@pytest.mark.parametrize(("things", "stuff"), [(0, 0), (0, 2), (1, 0), (4, 3)])
def test_training(recipe: dict, things: int, stuff: int) -> None:
    model = tiny_model(recipe)
    assert model.mask_stride == 4
    losses = model([make_input(64, 96, things=things, stuff=stuff), make_input(50, 70, things=1, stuff=1)])
    assert all(loss.isfinite() for loss in losses.values())
    total(losses).backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in trained.values())


@RECIPES
def test_results(recipe: dict) -> None:
    model = tiny_model(recipe).eval()
    inputs = [
        make_input(64, 96, things=1, stuff=1),
        make_input(50, 70, things=1, stuff=1),
        make_input(1, 1, things=0, stuff=0),
    ]
    with torch.no_grad():
        results = model(inputs)
    for result, size in zip(results, [(64, 96), (50, 70), (1, 1)], strict=True):
        check_result(result, model, *size)


@RECIPES
def test_one_pixel_in_training(recipe: dict) -> None:
    losses = tiny_model(recipe)([make_input(1, 1, things=1, stuff=0)])
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"MASK_FEATURE": "res3"}, r'MASK_FEATURE is "res3": expected .* finer than stride 8, "res3" of .*IN_FEATURES'),
        ({"MASK_FEATURE": "res2", "FINE_FEATURE": "res2"}, r'finer than stride 4, "res2" of MODEL\.PSF\.FINE_FEATURE'),
        ({"MASK_FEATURE": "res9"}, r'MASK_FEATURE is "res9"'),
    ],
)
def test_a_map_that_is_not_finer(keys: dict, message: str) -> None:
    from detectron2.modeling import build_model

    with pytest.raises(ValueError, match=message):
        build_model(tiny_config(keys))
