"""Counts of pixels of matched masks, by hand."""

from __future__ import annotations

import torch

from psf.losses import ThingAssignments, measure_mask_health
from psf.structures import DecodedMasks, PanopticTargets, TrainingPredictions
from tests.losses.scenes import gt, pairs

NO_MASKS = DecodedMasks([], [])
BOX = (0, 0, 4, 4)


def masks(*values: list[list[float]]) -> torch.Tensor:
    """(images, queries, 2, 2) scores: each query has one value everywhere but in its last pixel, which is 0."""
    scores = torch.tensor(values)[..., None, None].expand(-1, -1, 2, 2).clone()
    scores[..., 1, 1] = 0
    return scores.requires_grad_()


def predictions(things: list[torch.Tensor], stuff: list[torch.Tensor]) -> TrainingPredictions:
    return TrainingPredictions([], DecodedMasks(things, []), [], DecodedMasks(stuff, []), [])


def test_matched_things_and_present_stuff_count():
    targets = [gt([(0, BOX)], [(2, BOX)]), gt([(0, BOX), (1, BOX)], [])]
    assignments = ThingAssignments([], [pairs((1, 0)), pairs((0, 0), (2, 1))])
    # Matched: query 1 of the first image, queries 0 and 2 of the second. Two heads.
    things = [masks([9, 0.0, 9], [0.4, 9, 0.7]), masks([9, 0.2, 9], [0.0, 9, 0.1])]
    stuff = [masks([9, 9, 0.6], [9, 9, 9])]  # class 2 of the first image is present
    health = measure_mask_health(predictions(things, stuff), assignments, targets, 0.5)
    assert health.things is not None and health.stuff is not None
    # 3 pixels of a mask may be above; 3 masks of 4 pixels.
    assert health.things.above_zero.tolist() == [6, 6]
    assert health.things.above_threshold.tolist() == [3, 0]
    assert health.things.num_pixels == 12
    assert (health.stuff.above_zero.tolist(), health.stuff.above_threshold.tolist()) == ([3], [3])
    assert health.stuff.num_pixels == 4
    assert not health.things.above_zero.requires_grad
    # A score of the threshold itself is not above it.
    assert measure_mask_health(predictions(things, stuff), assignments, targets, 0.6).stuff.above_threshold.item() == 0


def test_nothing_to_find():
    empty: list[PanopticTargets] = [gt(), gt()]
    no_pairs = ThingAssignments([], [pairs(), pairs()])
    found = predictions([masks([1.0], [1.0])], [masks([1.0], [1.0])])
    assert measure_mask_health(found, no_pairs, empty, 0.5) == (None, None)
    no_things = [gt([], [(0, BOX)]), gt()]
    health = measure_mask_health(found, no_pairs, no_things, 0.5)
    assert health.things is None and health.stuff is not None and health.stuff.num_pixels == 4


def test_a_model_without_things_or_stuff():
    targets = [gt([(0, BOX)], [(0, BOX)])]
    without_things = predictions([], [masks([1.0])])
    assert measure_mask_health(without_things, ThingAssignments([], []), targets, 0.5).things is None
    without_stuff = predictions([masks([1.0])], [])
    health = measure_mask_health(without_stuff, ThingAssignments([], [pairs((0, 0))]), targets, 0.5)
    assert health.stuff is None and health.things.above_zero.tolist() == [3]
