"""The cost of a pair, term by term and by hand; and that no other assignment is cheaper."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psf.losses.assignment import dice_cost, focal_cost, solve
from tests.losses.scenes import gt, matcher, pairs

LOG2 = math.log(2)


class TestTerms:
    def test_focal(self):
        logits = torch.tensor([[0.0, math.log(3)]])
        # p = 1/2: 0.25 (1/2)^2 log 2 - 0.75 (1/2)^2 log 2
        # p = 3/4: 0.25 (1/4)^2 log 4/3 - 0.75 (3/4)^2 log 4
        expected = [(0.0625 - 0.1875) * LOG2, 0.015625 * math.log(4 / 3) - 0.421875 * math.log(4)]
        torch.testing.assert_close(focal_cost(logits, 0.25, 2.0), torch.tensor([expected]))

    def test_class_is_that_of_the_thing(self):
        logits = torch.tensor([[0.0, math.log(3), -5.0]])
        cost = matcher(class_weight=2).cost(logits, None, None, gt([(1, (0, 0, 1, 1)), (0, (0, 0, 1, 1))]))
        torch.testing.assert_close(cost, 2 * focal_cost(logits, 0.25, 2.0)[:, [1, 0]])

    def test_l1_of_boxes_in_units_of_the_image(self):
        target = gt([(0, (0, 0, 10, 10))], image_size=(10, 20), padded_size=(32, 32))  # 0.25 0.5 0.5 1.0
        boxes = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
        cost = matcher(l1_weight=5).cost(torch.zeros(1, 1), boxes, None, target)
        torch.testing.assert_close(cost, torch.tensor([[5 * (0.25 + 0 + 0 + 0.5)]]))

    def test_giou(self):
        target = gt([(0, (1, 1, 3, 3))], image_size=(4, 4))
        boxes = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]])  # (0, 0, 2, 2) and (1, 1, 3, 3)
        cost = matcher(giou_weight=2).cost(torch.zeros(2, 1), boxes, None, target)
        # common 1, together 7, hull 9: 1/7 - 2/9
        torch.testing.assert_close(cost, torch.tensor([[-2 * (1 / 7 - 2 / 9)], [-2.0]]))

    def test_centres_have_no_giou(self):
        target = gt([(0, (0, 0, 4, 8))])  # 0.25, 0.5
        cost = matcher(l1_weight=5, giou_weight=2).cost(torch.zeros(1, 1), torch.tensor([[0.5, 0.75]]), None, target)
        torch.testing.assert_close(cost, torch.tensor([[5 * 0.5]]))

    def test_dice_at_the_size_of_the_scores(self):
        scores = torch.tensor([[[1.0, 0.5]]])  # (1, 1, 2)
        masks = gt([(0, (0, 0, 8, 8)), (0, (0, 0, 16, 8))], image_size=(8, 16)).thing_masks  # -> (1, 0), (1, 1)
        # 2 * 1 / (1.25 + 1 + 0.002) and 2 * 1.5 / (1.25 + 2 + 0.002)
        expected = torch.tensor([[1 - 2 / 2.252, 1 - 3 / 3.252]])
        torch.testing.assert_close(dice_cost(scores, masks), expected)
        target = gt([(0, (0, 0, 8, 8)), (0, (0, 0, 16, 8))], image_size=(8, 16))
        torch.testing.assert_close(matcher(dice_weight=3).cost(torch.zeros(1, 1), None, scores, target), 3 * expected)

    def test_terms_add_up(self):
        torch.manual_seed(0)
        target = gt([(0, (0, 0, 3, 5)), (1, (2, 2, 8, 8))])
        inputs = torch.randn(4, 2), torch.rand(4, 4), torch.rand(4, 2, 2), target
        weights = {"class_weight": 2.0, "l1_weight": 5.0, "giou_weight": 2.0, "dice_weight": 3.0}
        alone = [matcher(**{name: weight}).cost(*inputs) for name, weight in weights.items()]
        torch.testing.assert_close(matcher(**weights).cost(*inputs), sum(alone))

    def test_needs_no_gradient(self):
        logits = torch.zeros(2, 1, requires_grad=True)
        assert not matcher(class_weight=1).cost(logits, None, None, gt([(0, (0, 0, 1, 1))])).requires_grad


@st.composite
def costs(draw: st.DrawFn) -> torch.Tensor:
    """(N, G) float32, N and G from 1 to 5."""
    num_queries, num_things = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    numbers = st.floats(-10, 10, width=32)
    flat = draw(st.lists(numbers, min_size=num_queries * num_things, max_size=num_queries * num_things))
    return torch.tensor(flat, dtype=torch.float32).view(num_queries, num_things)


@settings(deadline=None)
@given(costs())
def test_no_other_assignment_is_cheaper(cost: torch.Tensor):
    queries, things = solve(cost)
    assert len(queries) == len(things) == min(cost.shape)
    assert len(set(queries.tolist())) == len(set(things.tolist())) == len(queries)
    assert queries.tolist() == sorted(queries.tolist())
    rows = (cost if cost.shape[0] <= cost.shape[1] else cost.T).tolist()  # each row gets a column of its own
    others = itertools.permutations(range(len(rows[0])), len(rows))
    cheapest = min(sum(row[column] for row, column in zip(rows, order, strict=True)) for order in others)
    assert cost[queries, things].double().sum().item() == pytest.approx(cheapest, abs=1e-9)


class TestBatch:
    def test_each_image_alone_and_none_where_there_are_no_things(self):
        target = gt([(0, (0, 0, 1, 1)), (1, (0, 0, 1, 1))])
        logits = torch.full((3, 3, 2), -5.0)
        logits[0, 2, 0] = logits[0, 1, 1] = 5.0
        logits[2, 0, 0] = logits[2, 2, 1] = 5.0
        found = matcher(class_weight=1)(logits, None, None, [target, gt(), target])
        expected = [pairs((1, 1), (2, 0)), pairs(), pairs((0, 0), (2, 1))]
        for got, want in zip(found, expected, strict=True):
            assert got.queries.tolist() == want.queries.tolist() and got.things.tolist() == want.things.tolist()

    def test_locations_and_masks_decide_too(self):
        target = gt([(0, (0, 0, 8, 8)), (0, (8, 0, 16, 8))], image_size=(8, 16))
        logits = torch.zeros(1, 2, 1)
        boxes = torch.tensor([[[0.75, 0.5, 0.5, 1.0], [0.25, 0.5, 0.5, 1.0]]])
        masks = torch.tensor([[[[0.0, 1.0]], [[1.0, 0.0]]]])
        for weights in ({"l1_weight": 1.0}, {"giou_weight": 1.0}, {"dice_weight": 1.0}):
            [found] = matcher(**weights)(logits, boxes, masks, [target])
            assert found.things.tolist() == [1, 0], weights


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("spoilt", "value", "terms"),
    [(0, NAN, "class"), (1, NAN, "L1, GIoU"), (1, INF, "L1, GIoU"), (2, NAN, "dice"), (2, INF, "dice")],
)
def test_not_finite_names_the_term(spoilt: int, value: float, terms: str):
    inputs = [torch.zeros(2, 1), torch.full((2, 4), 0.5), torch.full((2, 1, 1), 0.5)]
    inputs[spoilt][1] = value
    weights = {"class_weight": 1.0, "l1_weight": 1.0, "giou_weight": 1.0, "dice_weight": 1.0}
    with pytest.raises(ValueError, match=rf"not finite \(in: {terms}\).*SOLVER\.BASE_LR"):
        matcher(**weights).cost(*inputs, gt([(0, (0, 0, 4, 4))]))
