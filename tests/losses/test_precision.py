"""Costs and losses of half-precise predictions are those of the same numbers in float32, to the last bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from psf.losses import ThingAssignments
from psf.structures import DecodedMasks, TrainingPredictions
from tests.losses.scenes import (
    LOCATION_PAIRS,
    MASK_PAIRS,
    PROPOSED,
    TARGETS,
    criterion,
    gt,
    matcher,
    pairs,
    random_predictions,
)

HALVES = [torch.float16, torch.bfloat16]
ONE_WEIGHT = ["class_weight", "l1_weight", "giou_weight", "dice_weight"]


def as_type(x: Any, dtype: torch.dtype) -> Any:
    """Predictions, or a part of them, with all numbers in another type."""
    if isinstance(x, torch.Tensor):
        return x.to(dtype)
    if isinstance(x, list):
        return [as_type(one, dtype) for one in x]
    return x if x is None else type(x)(*(as_type(one, dtype) for one in x))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("location_dim", [4, 2])
def test_losses(location_dim: int, dtype: torch.dtype):
    rounded = as_type(random_predictions(location_dim), dtype)
    assignments = ThingAssignments(LOCATION_PAIRS, MASK_PAIRS, PROPOSED)
    losses = criterion()(rounded, assignments, TARGETS)
    expected = criterion()(as_type(rounded, torch.float32), assignments, TARGETS)
    for name, value in losses.items():
        assert value.dtype == torch.float32 and torch.equal(value, expected[name]), name


def test_float64_stays():
    found = random_predictions(4)
    assignments = ThingAssignments(LOCATION_PAIRS, MASK_PAIRS, PROPOSED)
    single, double = (criterion()(x, assignments, TARGETS) for x in (found, as_type(found, torch.float64)))
    for name, value in double.items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(value.float(), single[name], rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("weight", ONE_WEIGHT)
def test_costs(weight: str, dtype: torch.dtype):
    found = random_predictions(4)
    for image, target in enumerate(TARGETS[:2]):
        layer = found.location_layers[0]
        inputs = [layer.class_logits[image, :4], layer.locations[image, :4], found.things.mask_scores[0][image]]
        rounded = [x.to(dtype) for x in inputs]
        cost = matcher(**{weight: 1.0}).cost(*rounded, target)
        expected = matcher(**{weight: 1.0}).cost(*(x.float() for x in rounded), target)
        assert cost.dtype == torch.float32 and torch.equal(cost, expected)


def test_large_masks_of_a_relu_do_not_overflow():
    """The squares of these scores are above the largest float16, 65504."""
    target = gt([(0, (0, 0, 32, 64))], [(0, (0, 0, 64, 32))], image_size=(64, 64))
    scores = torch.full((1, 1, 64, 64), 300.0)
    found = TrainingPredictions([], DecodedMasks([scores], []), [], DecodedMasks([scores], []), [])
    expected = pytest.approx(1 - 300 / (300**2 + 0.5), rel=1e-4)  # both masks have half of the pixels
    losses = criterion()(as_type(found, torch.float16), ThingAssignments([], [pairs((0, 0))]), [target])
    assert {name: value.item() for name, value in losses.items()} == {
        "loss_seg_things": expected,
        "loss_seg_stuff": expected,
    }
    cost = matcher(dice_weight=1.0).cost(torch.zeros(1, 1), None, scores[0].half(), target)
    assert cost.item() == expected
