"""The terms of the loss, by hand. At p = 1/2 a focal term is 1/16 log 2 if the class is wanted, 3/16 log 2 if not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

import psf.losses.criterion
from psf.losses import ThingAssignments, measure_mask_health
from psf.losses.criterion import GIOU_EPS, dice_loss, giou_loss
from psf.structures import DecodedMasks, LocationLayer, PanopticTargets, TrainingPredictions
from tests.losses.scenes import criterion, gt, pairs

NO_MASKS = DecodedMasks([], [])
WANTED, UNWANTED = math.log(2) / 16, 3 * math.log(2) / 16


def predictions(**given: Any) -> TrainingPredictions:
    empty = TrainingPredictions([], NO_MASKS, [], NO_MASKS, [])
    return empty._replace(**given)


def close(value: Tensor, expected: float) -> bool:
    return value.item() == pytest.approx(expected, rel=1e-5)


class TestDice:
    def test_by_hand(self):
        scores = torch.tensor([[[0.5, 0.5], [0.5, 0.5]], [[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
        masks = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).expand(3, 2, 2)
        # 1 - 2 * 1 / (1 + 2), 1 - 2 * 2 / (2 + 2), 1 - 0
        torch.testing.assert_close(dice_loss(scores, masks), torch.tensor([1 / 3, 0.0, 1.0]), atol=1e-5, rtol=0)

    def test_scores_above_one(self):
        # 1 - 2 * 4 * 2 / (4 * 4 + 4)
        assert close(dice_loss(torch.full((1, 2, 2), 2.0), torch.ones(1, 2, 2))[0], 0.2)

    def test_empty_mask_and_empty_ground_truth_are_finite(self):
        assert dice_loss(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)).isfinite().all()


class TestLocation:
    def test_classes_of_all_queries(self):
        target = gt([(0, (0, 0, 4, 4)), (1, (4, 4, 8, 8))])
        layer = LocationLayer(torch.zeros(1, 3, 2), torch.full((1, 3, 4), 0.5))
        found = criterion()(
            predictions(location_layers=[layer]), ThingAssignments([[pairs((0, 1), (2, 0))]], []), [target]
        )
        # two logits of six are wanted; two things
        assert close(found["loss_det_cls"], (2 * WANTED + 4 * UNWANTED) / 2)

    def test_the_wanted_class_is_that_of_the_matched_thing(self):
        target = gt([(0, (0, 0, 4, 4)), (1, (4, 4, 8, 8))])
        logits = torch.full((1, 2, 2), -20.0)
        logits[0, 0, 1] = logits[0, 1, 0] = 20.0
        layer = LocationLayer(logits, torch.full((1, 2, 4), 0.5))
        for order, right in ((((0, 1), (1, 0)), True), (((0, 0), (1, 1)), False)):
            assignments = ThingAssignments([[pairs(*order)]], [])
            found = criterion()(predictions(location_layers=[layer]), assignments, [target])
            assert (found["loss_det_cls"] < 1e-6) == right

    def test_boxes(self):
        target = gt([(0, (1, 1, 3, 3))], image_size=(4, 4), padded_size=(8, 8))  # 0.5 0.5 0.5 0.5
        boxes = torch.tensor([[[0.9, 0.9, 0.1, 0.1], [0.25, 0.25, 0.5, 0.5]]])  # the second: (0, 0, 2, 2)
        found = criterion()(
            predictions(location_layers=[LocationLayer(torch.zeros(1, 2, 1), boxes)]),
            ThingAssignments([[pairs((1, 0))]], []),
            [target],
        )
        assert close(found["loss_det_l1"], 0.5)
        assert close(found["loss_det_giou"], 1 - (1 / 7 - 2 / 9))  # common 1, together 7, hull 9

    def test_centres_have_no_giou(self):
        target = gt([(0, (0, 0, 4, 8))])  # 0.25, 0.5
        layer = LocationLayer(torch.zeros(1, 1, 1), torch.tensor([[[0.5, 0.75]]]))
        found = criterion()(predictions(location_layers=[layer]), ThingAssignments([[pairs((0, 0))]], []), [target])
        assert close(found["loss_det_l1"], 0.5)
        assert "loss_det_giou" not in found

    def test_proposals_are_the_same_per_token_of_a_thing(self):
        """Four tokens of one thing, as a query's terms: of 5 x 2 logits 4 are wanted; the L1 distance is 0.25 each."""
        target = gt([(0, (0, 0, 4, 8))])  # centre x 0.25, y 0.5, sides 0.5 and 1
        boxes = torch.tensor([0.5, 0.5, 0.5, 1.0]).expand(1, 5, 4)
        proposals = LocationLayer(torch.zeros(1, 5, 2), boxes)
        tokens = ThingAssignments([], [], [pairs((0, 0), (1, 0), (2, 0), (4, 0))])
        found = criterion()(predictions(proposals=proposals), tokens, [target])
        assert close(found["loss_det_cls_proposals"], (4 * WANTED + 6 * UNWANTED) / 4)
        assert close(found["loss_det_l1_proposals"], 0.25)
        # Two boxes of 4 x 8 pixels, 2 apart: they share a third of their union, which is all of the box around them.
        assert close(found["loss_det_giou_proposals"], 2 / 3)

    def test_each_layer_has_its_own_assignment(self):
        target = gt([(0, (0, 0, 4, 4))])
        logits = torch.full((1, 2, 1), -20.0)
        logits[0, 1] = 20.0
        layer = LocationLayer(logits, torch.full((1, 2, 4), 0.5))
        found = criterion()(
            predictions(location_layers=[layer, layer]),
            ThingAssignments([[pairs((0, 0))], [pairs((1, 0))]], []),
            [target],
        )
        assert found["loss_det_cls_0"] > 1 and found["loss_det_cls"] < 1e-6


class TestMaskDecoder:
    def test_thing_classes(self):
        target = gt([(1, (0, 0, 4, 4))])
        found = criterion()(
            predictions(thing_class_logits=[torch.zeros(1, 2, 3)]), ThingAssignments([], [pairs((1, 0))]), [target]
        )
        assert close(found["loss_cls_things"], WANTED + 5 * UNWANTED)

    def test_stuff_classes_are_present_or_not(self):
        targets = [gt([], [(0, (0, 0, 4, 8)), (2, (4, 0, 8, 8))]), gt([(0, (0, 0, 4, 4))], [(1, (0, 0, 8, 8))])]
        found = criterion()(predictions(stuff_class_logits=[torch.zeros(2, 3)]), ThingAssignments([], []), targets)
        assert close(found["loss_cls_stuff"], (3 * WANTED + 3 * UNWANTED) / 3)

    def test_masks_at_twice_the_finest_level(self):
        target = gt([(0, (0, 0, 8, 8)), (0, (0, 0, 4, 8))], [(1, (0, 0, 8, 8))])
        half = torch.full((1, 3, 1, 1), 0.5)
        found = criterion()(
            predictions(things=DecodedMasks([half], []), stuff=DecodedMasks([half], [])),
            ThingAssignments([], [pairs((0, 1), (2, 0))]),
            [target],
        )
        # at 2 x 2 pixels: full 1 - 2 * 2 / (1 + 4) = 0.2, left half 1 - 2 * 1 / (1 + 2) = 1 / 3
        assert close(found["loss_seg_things"], (0.2 + 1 / 3) / 2)
        assert close(found["loss_seg_stuff"], 0.2)

    def test_stuff_masks_belong_to_their_class(self):
        target = gt([], [(2, (0, 0, 4, 8)), (0, (4, 0, 8, 8))])
        scores = torch.zeros(1, 3, 4, 4)
        scores[0, 2, :, :2] = scores[0, 0, :, 2:] = 1.0
        found = criterion()(predictions(stuff=DecodedMasks([scores], [])), ThingAssignments([], []), [target])
        assert found["loss_seg_stuff"] < 0.1
        swapped = criterion()(predictions(stuff=DecodedMasks([scores.flip(1)], [])), ThingAssignments([], []), [target])
        assert swapped["loss_seg_stuff"] > 0.9

    def test_unmatched_masks_weigh_nothing(self):
        target = gt([(0, (0, 0, 4, 4))])
        scores = torch.rand(1, 3, 2, 2, requires_grad=True)
        found = criterion()(
            predictions(things=DecodedMasks([scores], [])), ThingAssignments([], [pairs((1, 0))]), [target]
        )
        found["loss_seg_things"].backward()
        assert scores.grad is not None
        assert not scores.grad[0, [0, 2]].any() and scores.grad[0, 1].any()


def everything(targets: list[PanopticTargets]) -> tuple[TrainingPredictions, ThingAssignments]:
    """Two layers of all that can be predicted by three queries, which need gradients; every thing is matched.

    Queries ascend, the things do not: the first query has the last thing.
    """
    torch.manual_seed(0)
    batch = len(targets)

    def leaves(*shape: int) -> list[Tensor]:
        return [torch.rand(batch, 3, *shape).requires_grad_() for _ in range(3)]

    matched = [pairs(*enumerate(reversed(range(len(target.thing_classes))))) for target in targets]
    layers = [LocationLayer(logits, boxes) for logits, boxes in zip(leaves(2)[:2], leaves(4)[:2], strict=True)]
    found = TrainingPredictions(
        layers, DecodedMasks(leaves(2, 3), []), leaves(2)[:2], DecodedMasks(leaves(2, 3), []), leaves()[:2]
    )
    return found, ThingAssignments([matched] * 2, matched)


def leaves_of(found: TrainingPredictions) -> list[Tensor]:
    layers = [x for layer in found.location_layers for x in layer]
    masks = [*found.things.mask_scores, *found.stuff.mask_scores]
    return [*layers, *masks, *found.thing_class_logits, *found.stuff_class_logits]


ONE_IMAGE = [gt([(0, (0, 0, 5, 5)), (1, (3, 3, 8, 8))], [(1, (0, 0, 8, 8))])]
TERMS = {
    "cls_weight": "loss_cls_things",
    "stuff_cls_weight": "loss_cls_stuff",
    "seg_weight": "loss_seg_",
    "det_cls_weight": "loss_det_cls",
    "det_l1_weight": "loss_det_l1",
    "det_giou_weight": "loss_det_giou",
}


class TestWeights:
    def test_names_of_all_terms(self):
        found, assignments = everything(ONE_IMAGE)
        names = [f"loss_{x}" for x in ("det_cls", "det_l1", "det_giou", "cls_things", "cls_stuff")]
        names += [name + "_0" for name in names]
        names += [f"loss_seg_{kind}{suffix}" for kind in ("things", "stuff") for suffix in ("_0", "_1", "")]
        assert set(criterion()(found, assignments, ONE_IMAGE)) == set(names)

    @pytest.mark.parametrize(("weight", "prefix"), TERMS.items())
    def test_each_weighs_its_own_terms(self, weight: str, prefix: str):
        found, assignments = everything(ONE_IMAGE)
        plain = criterion()(found, assignments, ONE_IMAGE)
        weighted = criterion(**{weight: 3.0})(found, assignments, ONE_IMAGE)
        for name in plain:
            factor = 3 if name.startswith(prefix) else 1
            torch.testing.assert_close(weighted[name], factor * plain[name], msg=name)

    @pytest.mark.parametrize("weight", ["things_weight", "stuff_weight"])
    def test_lambda_of_a_kind(self, weight: str):
        found, assignments = everything(ONE_IMAGE)
        plain = criterion()(found, assignments, ONE_IMAGE)
        weighted = criterion(**{weight: 3.0})(found, assignments, ONE_IMAGE)
        for name in plain:
            is_stuff = "stuff" in name
            torch.testing.assert_close(
                weighted[name], (3 if is_stuff == (weight == "stuff_weight") else 1) * plain[name], msg=name
            )

    @pytest.mark.parametrize(
        ("targets", "things", "stuff"),
        [
            (ONE_IMAGE, 2 / 3, 1 / 3),
            ([*ONE_IMAGE, gt([(0, (0, 0, 4, 4))])], 3 / 4, 1 / 4),
            ([gt([], [(0, (0, 0, 4, 4)), (1, (4, 4, 8, 8))])], 1 / 3, 2 / 3),  # no thing counts as one
            ([gt([(0, (0, 0, 4, 4))])], 1 / 2, 1 / 2),  # and so does no stuff
        ],
    )
    def test_share_of_the_segments(self, targets: list[PanopticTargets], things: float, stuff: float):
        found, assignments = everything(targets)
        fixed = criterion()(found, assignments, targets)
        shared = criterion(balance="share", things_weight=2.0)(found, assignments, targets)
        for name in fixed:
            share = stuff if "stuff" in name else 2.0 * things
            torch.testing.assert_close(shared[name], share * fixed[name], msg=name)

    def test_unknown_balance(self):
        with pytest.raises(ValueError, match=r'LOSS.BALANCE is "equal": expected one of .*fixed.*share'):
            criterion(balance="equal")


class TestBatch:
    def test_things_and_stuff_are_counted_in_the_batch(self):
        three = gt([(0, (0, 0, 2, 2)), (1, (2, 2, 5, 5)), (0, (5, 5, 8, 8))], [(0, (0, 0, 8, 8))])
        targets = [*ONE_IMAGE, three]
        found, assignments = everything(targets)
        both = criterion()(found, assignments, targets)
        alone = []
        for b in range(2):
            own = TrainingPredictions(
                [LocationLayer(x.class_logits[[b]], x.locations[[b]]) for x in found.location_layers],
                DecodedMasks([x[[b]] for x in found.things.mask_scores], []),
                [x[[b]] for x in found.thing_class_logits],
                DecodedMasks([x[[b]] for x in found.stuff.mask_scores], []),
                [x[[b]] for x in found.stuff_class_logits],
            )
            one = ThingAssignments([[images[b]] for images in assignments.location], [assignments.masks[b]])
            alone.append(criterion()(own, one, [targets[b]]))
        for name in both:
            counts = (1, 1) if "stuff" in name else (2, 3)
            sums = [count * losses[name] for count, losses in zip(counts, alone, strict=True)]
            torch.testing.assert_close(both[name], sum(sums) / sum(counts), msg=name)

    @pytest.mark.parametrize("balance", ["fixed", "share"])
    @pytest.mark.parametrize("targets", [[gt()], [gt(), gt()], [gt([], [(1, (0, 0, 8, 8))])]])
    def test_what_is_absent_is_a_zero_in_the_graph(self, targets: list[PanopticTargets], balance: str):
        found, assignments = everything(targets)
        losses = criterion(balance=balance)(found, assignments, targets)
        assert all(value.isfinite() for value in losses.values())
        for name, value in losses.items():
            absent_thing = name.startswith(("loss_seg_things", "loss_det_l1", "loss_det_giou"))
            if absent_thing or (name.startswith("loss_seg_stuff") and not len(targets[0].stuff_classes)):
                assert value.item() == 0
            else:
                assert value.item() > 0  # the classes: all queries are of none
        torch.stack(list(losses.values())).sum().backward()
        assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves_of(found))


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_autocast_changes_no_bit(given: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    """Autocast is off inside: none of today's operations would use half precision, but another one could."""
    seen = []

    def spy(mask_scores: Tensor, masks: Tensor) -> Tensor:
        seen.append((torch.is_autocast_enabled("cpu"), mask_scores.dtype, masks.dtype))
        return dice_loss(mask_scores, masks)

    monkeypatch.setattr(psf.losses.criterion, "dice_loss", spy)
    found, assignments = everything(ONE_IMAGE)
    found = found._replace(
        location_layers=[LocationLayer(*(x.to(given) for x in layer)) for layer in found.location_layers],
        things=DecodedMasks([x.to(given) for x in found.things.mask_scores], []),
        thing_class_logits=[x.to(given) for x in found.thing_class_logits],
    )
    expected = criterion()(found, assignments, ONE_IMAGE)
    with torch.autocast("cpu", torch.bfloat16):
        losses = criterion()(found, assignments, ONE_IMAGE)
    assert [name for name, value in losses.items() if not torch.equal(value, expected[name])] == []
    assert set(seen) == {(False, torch.float32, torch.float32)}


def test_giou_is_that_of_torchvision_to_the_bit():
    """Boxes that overlap, touch, are apart, inside one another and empty; with gradients."""
    gt_boxes = torch.tensor([[0.0, 0, 4, 4]] * 6 + [[1.5, 2, 3, 9]])
    boxes = torch.tensor(
        [[1.0, 1, 5, 6], [4, 0, 8, 4], [6, 6, 8, 9], [1, 1, 2, 2], [2, 2, 2, 2], [0, 0, 4, 4], [1.1, 2.3, 3.7, 5.9]]
    )
    results = []
    for function in (giou_loss, lambda x, y: generalized_box_iou_loss(x, y, eps=GIOU_EPS)):
        leaf = boxes.clone().requires_grad_()
        value = function(leaf, gt_boxes)
        value.sum().backward()
        results.append((value, leaf.grad))
    (value, gradient), (expected, expected_gradient) = results
    assert torch.equal(value, expected) and torch.equal(gradient, expected_gradient)
    assert giou_loss(boxes[:0], gt_boxes[:0]).shape == (0,)


BOX = (0, 0, 4, 4)


def masks(*values: list[list[float]]) -> torch.Tensor:
    """(images, queries, 2, 2) scores: each query has one value everywhere but in its last pixel, which is 0."""
    scores = torch.tensor(values)[..., None, None].expand(-1, -1, 2, 2).clone()
    scores[..., 1, 1] = 0
    return scores.requires_grad_()


def mask_predictions(things: list[torch.Tensor], stuff: list[torch.Tensor]) -> TrainingPredictions:
    return TrainingPredictions([], DecodedMasks(things, []), [], DecodedMasks(stuff, []), [])


def test_matched_things_and_present_stuff_count():
    targets = [gt([(0, BOX)], [(2, BOX)]), gt([(0, BOX), (1, BOX)], [])]
    assignments = ThingAssignments([], [pairs((1, 0)), pairs((0, 0), (2, 1))])
    # Matched: query 1 of the first image, queries 0 and 2 of the second. Two heads.
    things = [masks([9, 0.0, 9], [0.4, 9, 0.7]), masks([9, 0.2, 9], [0.0, 9, 0.1])]
    stuff = [masks([9, 9, 0.6], [9, 9, 9])]  # class 2 of the first image is present
    health = measure_mask_health(mask_predictions(things, stuff), assignments, targets, 0.5)
    assert health.things is not None and health.stuff is not None
    # 3 pixels of a mask may be above; 3 masks of 4 pixels.
    assert health.things.above_zero.tolist() == [6, 6]
    assert health.things.above_threshold.tolist() == [3, 0]
    assert health.things.num_pixels == 12
    assert (health.stuff.above_zero.tolist(), health.stuff.above_threshold.tolist()) == ([3], [3])
    assert health.stuff.num_pixels == 4
    assert not health.things.above_zero.requires_grad
    # A score of the threshold itself is not above it.
    assert (
        measure_mask_health(mask_predictions(things, stuff), assignments, targets, 0.6).stuff.above_threshold.item()
        == 0
    )


def test_nothing_to_find():
    empty: list[PanopticTargets] = [gt(), gt()]
    no_pairs = ThingAssignments([], [pairs(), pairs()])
    found = mask_predictions([masks([1.0], [1.0])], [masks([1.0], [1.0])])
    assert measure_mask_health(found, no_pairs, empty, 0.5) == (None, None)
    no_things = [gt([], [(0, BOX)]), gt()]
    health = measure_mask_health(found, no_pairs, no_things, 0.5)
    assert health.things is None and health.stuff is not None and health.stuff.num_pixels == 4


def test_a_model_without_things_or_stuff():
    targets = [gt([(0, BOX)], [(0, BOX)])]
    without_things = mask_predictions([], [masks([1.0])])
    assert measure_mask_health(without_things, ThingAssignments([], []), targets, 0.5).things is None
    without_stuff = mask_predictions([masks([1.0])], [])
    health = measure_mask_health(without_stuff, ThingAssignments([], [pairs((0, 0))]), targets, 0.5)
    assert health.stuff is None and health.things.above_zero.tolist() == [3]
