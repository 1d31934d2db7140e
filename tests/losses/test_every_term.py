"""Every term of the loss against loops, where nothing is symmetric: sizes, pairs, classes, layers and weights differ."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from psf.losses import ThingAssignments
from psf.losses.assignment import Assignment
from psf.structures import DecodedMasks, LocationLayer, PanopticTargets, TrainingPredictions
from tests.losses.loops import ALPHA, GAMMA, box_terms, center_distance, focal_sum, mask_sum, pairs_of
from tests.losses.scenes import criterion, gt, pairs

PADDED = (16, 24)
TARGETS = [
    gt(
        [(2, (1, 2, 9, 8)), (0, (12, 0, 20, 5)), (1, (3, 9, 19, 12))],
        [(3, (0, 0, 10, 12)), (1, (10, 3, 20, 9))],
        image_size=(12, 20),
        padded_size=PADDED,
    ),
    gt([(1, (5, 1, 24, 7)), (1, (0, 8, 9, 16))], [(0, (2, 2, 24, 16))], image_size=(16, 24), padded_size=PADDED),
    gt([], [(2, (0, 0, 7, 4)), (0, (7, 0, 10, 9))], image_size=(9, 10), padded_size=PADDED),
]
NUM_THINGS, NUM_STUFF = 5, 5
# Queries ascend, the things do not; each layer has its own pairs.
LOCATION_PAIRS = [
    [pairs((0, 2), (1, 0), (4, 1)), pairs((2, 1), (3, 0)), pairs()],
    [pairs((1, 1), (2, 2), (3, 0)), pairs((0, 1), (4, 0)), pairs()],
]
MASK_PAIRS = [pairs((1, 2), (2, 0), (3, 1)), pairs((0, 1), (3, 0)), pairs()]
PROPOSED = [pairs((0, 1), (3, 0), (5, 2), (6, 1)), pairs((1, 1), (2, 0), (6, 0)), pairs()]
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


def random_predictions(location_dim: int) -> TrainingPredictions:
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(len(TARGETS), *shape, generator=generator) * 0.8 + 0.1

    def logits(*shape: int) -> Tensor:
        return torch.randn(len(TARGETS), *shape, generator=generator)

    def layer(number: int) -> LocationLayer:
        return LocationLayer(logits(number, 3), uniform(number, location_dim))

    return TrainingPredictions(
        location_layers=[layer(5), layer(5)],
        things=DecodedMasks([uniform(4, 4, 6) for _ in range(3)], []),
        thing_class_logits=[logits(4, 3) for _ in range(2)],
        stuff=DecodedMasks([uniform(4, 4, 6) for _ in range(3)], []),
        stuff_class_logits=[logits(4) for _ in range(2)],
        proposals=layer(7),
    )


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
    for suffix, thing_logits, stuff_logits in zip(
        ("_0", ""), found.thing_class_logits, found.stuff_class_logits, strict=True
    ):
        things[f"loss_cls_things{suffix}"] = 2 * class_sum(thing_logits, MASK_PAIRS)
        present = [{(k,) for k in target.stuff_classes.tolist()} for target in TARGETS]
        sums = [focal_sum(one, wanted) for one, wanted in zip(stuff_logits, present, strict=True)]
        stuff[f"loss_cls_stuff{suffix}"] = 3 * sum(sums)
    for suffix, thing_masks, stuff_masks in zip(
        ("_0", "_1", ""), found.things.mask_scores, found.stuff.mask_scores, strict=True
    ):
        things[f"loss_seg_things{suffix}"] = 5 * sum(
            mask_sum(scores, pairs_of(matched), target.thing_masks, factor)
            for scores, matched, target in zip(thing_masks, MASK_PAIRS, TARGETS, strict=True)
        )
        stuff[f"loss_seg_stuff{suffix}"] = 5 * sum(
            mask_sum(scores, [(k, row) for row, k in enumerate(target.stuff_classes.tolist())], target.stuff_masks, factor)
            for scores, target in zip(stuff_masks, TARGETS, strict=True)
        )
    return things, stuff


def losses_of(found: TrainingPredictions, **settings: Any) -> dict[str, Tensor]:
    targets: list[PanopticTargets] = TARGETS
    return criterion(**{**WEIGHTS, **settings})(found, ThingAssignments(LOCATION_PAIRS, MASK_PAIRS, PROPOSED), targets)


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
