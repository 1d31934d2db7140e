"""Every term of the loss against loops, where sizes, pairs, classes, layers and weights all differ."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from psf.losses import ThingAssignments
from psf.losses.assignment import Assignment
from psf.structures import LocationLayer, TrainingPredictions
from tests.losses.loops import ALPHA, GAMMA, box_terms, center_distance, focal_sum, mask_sum, pairs_of
from tests.losses.scenes import LOCATION_PAIRS, MASK_PAIRS, PROPOSED, TARGETS, criterion, random_predictions

NUM_THINGS, NUM_STUFF = 5, 4  # in TARGETS
WEIGHTS: dict[str, Any] = {
    "cls_weight": 2.0,
    "stuff_cls_weight": 3.0,
    "seg_weight": 5.0,
    "det_cls_weight": 7.0,
    "det_l1_weight": 11.0,
    "det_giou_weight": 13.0,
    "things_weight": 0.7,
    "stuff_weight": 0.3,
    "focal_alpha": ALPHA,
    "focal_gamma": GAMMA,
}


def class_sum(logits: Tensor, assignments: list[Assignment]) -> float:
    return sum(
        focal_sum(one, {(query, int(target.thing_classes[thing])) for query, thing in pairs_of(matched)})
        for one, matched, target in zip(logits, assignments, TARGETS, strict=True)
    )


def location_sums(layer: LocationLayer, assignments: list[Assignment], suffix: str) -> dict[str, float]:
    """The terms of a location layer, weighted, before they are divided."""
    sums = {f"loss_det_cls{suffix}": 7 * class_sum(layer.class_logits, assignments)}
    images = list(enumerate(zip(assignments, TARGETS, strict=True)))
    if layer.locations.shape[-1] == 2:
        sums[f"loss_det_l1{suffix}"] = 11 * sum(center_distance(layer, b, a, target) for b, (a, target) in images)
        return sums
    l1, giou = zip(*(box_terms(layer, b, a, target) for b, (a, target) in images), strict=True)
    sums[f"loss_det_l1{suffix}"], sums[f"loss_det_giou{suffix}"] = 11 * sum(l1), 13 * sum(giou)
    return sums


def expected_sums(found: TrainingPredictions, factor: int) -> tuple[dict[str, float], dict[str, float]]:
    """Terms of things and of stuff, weighted, before they are divided by the number of segments."""
    things: dict[str, float] = {}
    for layer, assignments, suffix in zip(found.location_layers, LOCATION_PAIRS, ("_0", ""), strict=True):
        things |= location_sums(layer, assignments, suffix)
    proposals = location_sums(found.proposals, PROPOSED, "_proposals")
    things |= {name: value / 4 for name, value in proposals.items()}  # four tokens for each thing
    stuff: dict[str, float] = {}
    present = [target.stuff_classes.tolist() for target in TARGETS]
    for suffix, thing_logits, stuff_logits in zip(
        ("_0", ""), found.thing_class_logits, found.stuff_class_logits, strict=True
    ):
        things[f"loss_cls_things{suffix}"] = 2 * class_sum(thing_logits, MASK_PAIRS)
        sums = [focal_sum(one, {(k,) for k in rows}) for one, rows in zip(stuff_logits, present, strict=True)]
        stuff[f"loss_cls_stuff{suffix}"] = 3 * sum(sums)
    for suffix, thing_masks, stuff_masks in zip(
        ("_0", "_1", ""), found.things.mask_scores, found.stuff.mask_scores, strict=True
    ):
        things[f"loss_seg_things{suffix}"] = 5 * sum(
            mask_sum(scores, pairs_of(matched), target.thing_masks, factor)
            for scores, matched, target in zip(thing_masks, MASK_PAIRS, TARGETS, strict=True)
        )
        stuff[f"loss_seg_stuff{suffix}"] = 5 * sum(
            mask_sum(scores, [(k, row) for row, k in enumerate(rows)], target.stuff_masks, factor)
            for scores, target, rows in zip(stuff_masks, TARGETS, present, strict=True)
        )
    return things, stuff


def losses_of(found: TrainingPredictions, **settings: Any) -> dict[str, Tensor]:
    return criterion(**{**WEIGHTS, **settings})(found, ThingAssignments(LOCATION_PAIRS, MASK_PAIRS, PROPOSED), TARGETS)


@pytest.mark.parametrize("balance", ["fixed", "share"])
@pytest.mark.parametrize(("location_dim", "factor"), [(4, 2), (2, 2), (4, 1)])
def test_every_term(location_dim: int, factor: int, balance: str):
    found = random_predictions(location_dim)
    losses = losses_of(found, balance=balance, mask_upsampling=factor)
    things, stuff = expected_sums(found, factor)
    number = NUM_THINGS + NUM_STUFF
    shares = (1 / NUM_THINGS, 1 / NUM_STUFF) if balance == "fixed" else (1 / number, 1 / number)
    expected = {name: 0.7 * shares[0] * value for name, value in things.items()}
    expected |= {name: 0.3 * shares[1] * value for name, value in stuff.items()}
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(expected, rel=2e-5)
