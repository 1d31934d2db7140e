"""Costs, targets and assignments: by hand, and which queries the mask decoder learns on."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from psf.losses import Assignment, PerLayerAssigner, SharedAssigner
from psf.losses.assignment import cheapest_tokens, dice_cost, focal_cost, solve, target_locations
from psf.structures import DecodedMasks, LocatedQueries, LocationLayer, PanopticTargets, TrainingPredictions
from tests.host_waits import count_host_waits
from tests.losses.scenes import gt, matcher, pairs

NO_MASKS = DecodedMasks([], [])
LEFT, RIGHT = (0, (0, 0, 8, 8)), (1, (8, 0, 16, 8))  # things of two classes
TWO_THINGS = gt([LEFT, RIGHT], image_size=(8, 16))
ONE_THING = gt([LEFT], image_size=(8, 16))
NO_THINGS = gt(image_size=(8, 16))


def sure(num_queries: int, *classes: int | None) -> Tensor:
    """(1, N, 2) logits of queries that are sure of a class, or of none; further queries are of none."""
    logits = torch.full((1, num_queries, 2), -5.0)
    for query, k in enumerate(classes):
        if k is not None:
            logits[0, query, k] = 5.0
    return logits


def layer(logits: Tensor) -> LocationLayer:
    """All boxes alike, so that classes alone decide."""
    return LocationLayer(logits, torch.full((*logits.shape[:2], 4), 0.5))


def located(*layers: Tensor) -> LocatedQueries:
    """Query n of image b holds the number 100 b + n, its position minus that."""
    batch, number = layers[-1].shape[:2]
    queries = torch.arange(number).float() + 100 * torch.arange(batch)[:, None]
    return LocatedQueries(queries[..., None], -queries[..., None], [layer(x) for x in layers])


def as_pairs(assignment) -> list[tuple[int, int]]:
    return list(zip(assignment.queries.tolist(), assignment.things.tolist(), strict=True))


class TestShared:
    matching = SharedAssigner(matcher(class_weight=1.0, l1_weight=1.0, dice_weight=1.0))

    def assign(self, location_logits: list[Tensor], class_logits: list[Tensor], masks: list[Tensor]):
        predictions = TrainingPredictions(
            [layer(x) for x in location_logits], DecodedMasks(masks, []), class_logits, NO_MASKS, []
        )
        queries = located(*location_logits) if location_logits else LocatedQueries(torch.zeros(1, 4, 1), None, [])
        return self.matching.assign(predictions, self.matching.select(queries, [TWO_THINGS]), [TWO_THINGS])

    def test_all_queries_are_decoded(self):
        queries = located(sure(4))
        selected = self.matching.select(queries, [TWO_THINGS])
        assert selected.queries is queries.queries and selected.query_pos is queries.query_pos
        assert selected.kept is None and selected.location_assignments == []

    def test_last_layer_of_the_mask_decoder_serves_all(self):
        empty = torch.zeros(1, 4, 1, 2)
        found = self.assign(
            [sure(4, 0, 1), sure(4, 0, 1)],
            [sure(4, 1, 0), sure(4, None, 1, None, 0)],
            [empty, empty, empty],
        )
        assert [as_pairs(images[0]) for images in found.location] == [[(1, 1), (3, 0)]] * 2
        assert as_pairs(found.masks[0]) == [(1, 1), (3, 0)]

    def test_the_tail_s_masks_take_part(self):
        left_and_right = torch.tensor([[[[0.0, 1.0]], [[0.0, 0.0]], [[1.0, 0.0]], [[0.0, 0.0]]]])
        found = self.assign([sure(4)], [sure(4), sure(4)], [left_and_right.flip(1), left_and_right])
        assert as_pairs(found.masks[0]) == [(0, 1), (2, 0)]

    def test_the_last_layer_s_locations_take_part(self):
        boxes = torch.tensor([[(0.5, 0.5, 0.1, 0.1), (0.75, 0.5, 0.5, 1.0), (0.25, 0.5, 0.5, 1.0)]])
        layers = [LocationLayer(sure(3), boxes.flip(1)), LocationLayer(sure(3), boxes)]
        queries = LocatedQueries(torch.zeros(1, 3, 1), None, layers)
        things = DecodedMasks([torch.zeros(1, 3, 1, 2)], [])
        predictions = TrainingPredictions(layers, things, [], NO_MASKS, [])
        found = self.matching.assign(predictions, self.matching.select(queries, [TWO_THINGS]), [TWO_THINGS])
        assert as_pairs(found.masks[0]) == [(1, 1), (2, 0)]

    def test_location_decoder_names_the_classes_where_the_mask_decoder_does_not(self):
        found = self.assign([sure(4, 0, 1), sure(4, None, None, 1, 0)], [], [torch.zeros(1, 4, 1, 2)])
        assert as_pairs(found.masks[0]) == [(2, 1), (3, 0)]

    def test_without_location_layers(self):
        found = self.assign([], [sure(4, None, 1, 0)], [torch.zeros(1, 4, 1, 2)])
        assert found.location == []
        assert as_pairs(found.masks[0]) == [(1, 1), (2, 0)]


class TestPerLayer:
    def matching(self, queries_per_thing: int = 1, **second: float) -> PerLayerAssigner:
        return PerLayerAssigner(
            matcher(class_weight=1.0, l1_weight=1.0), matcher(**(second or {"class_weight": 1.0})), queries_per_thing
        )

    def test_each_layer_is_matched_alone(self):
        layers = located(sure(5, 0, 1), sure(5, None, None, 1, None, 0))
        selected = self.matching().select(layers, [TWO_THINGS])
        assert [as_pairs(images[0]) for images in selected.location_assignments] == [[(0, 0), (1, 1)], [(2, 1), (4, 0)]]
        assert [kept.tolist() for kept in selected.kept] == [[2, 4]]
        assert selected.queries[0, :, 0].tolist() == [2, 4]

    def test_fewer_things_are_padded_with_the_first_query(self):
        last = torch.cat((sure(5, None, 0, None, 1), sure(5, None, None, None, None, 0), sure(5)))
        selected = self.matching().select(located(last), [TWO_THINGS, ONE_THING, NO_THINGS])
        assert [kept.tolist() for kept in selected.kept] == [[1, 3], [4], []]
        assert selected.queries[..., 0].tolist() == [[1, 3], [104, 100], [200, 200]]
        assert torch.equal(selected.query_pos, -selected.queries)

    def test_queries_without_position(self):
        queries = located(sure(5, None, 0))._replace(query_pos=None)
        assert self.matching().select(queries, [ONE_THING]).query_pos is None

    def test_no_thing_in_the_batch_leaves_one_row(self):
        layers = located(torch.cat((sure(5), sure(5))))
        selected = self.matching().select(layers, [NO_THINGS, NO_THINGS])
        assert selected.queries.shape == (2, 1, 1)
        assert [len(kept) for kept in selected.kept] == [0, 0]

    def test_more_queries_per_thing_come_from_the_rest(self):
        logits = torch.full((1, 6, 2), -5.0)
        logits[0, :, 0] = torch.tensor([1.0, 4.0, -5.0, 3.0, -5.0, 2.0])  # for the left thing: 1, then 3, then 5
        logits[0, :, 1] = torch.tensor([-5.0, -5.0, 4.0, -5.0, 3.0, -5.0])  # for the right one: 2, then 4, then any
        kept = [self.matching(n).select(located(logits), [TWO_THINGS]).kept[0].tolist() for n in (1, 2, 3)]
        assert kept[0] == [1, 2]
        assert kept[1] == [1, 2, 3, 4]
        assert kept[2] == [0, 1, 2, 3, 4, 5]

    def test_more_queries_are_those_of_the_last_layer(self):
        logits = torch.full((1, 6, 2), -5.0)
        logits[0, :4, 0] = torch.tensor([4.0, 3.0, 2.0, 1.0])  # for the left thing: 0, then 1
        logits[0, :, 1] = torch.tensor([-5.0, -5.0, 1.0, 2.0, 3.0, 4.0])  # for the right one: 5, then 4
        first = torch.full((1, 6, 2), -5.0)
        first[0, 2, 0] = first[0, 3, 1] = 4.0
        selected = self.matching(2).select(located(first, logits), [TWO_THINGS])
        assert selected.kept[0].tolist() == [0, 1, 4, 5]

    def test_no_more_queries_than_there_are(self):
        selected = self.matching(3).select(located(sure(3, 0, 1)), [TWO_THINGS])
        assert selected.kept[0].tolist() == [0, 1, 2]

    def test_kept_queries_are_matched_again_with_their_masks(self):
        last = torch.cat((sure(5, None, 0, None, 1), sure(5, None, None, None, None, 0), sure(5)))
        layers, targets = located(last), [TWO_THINGS, ONE_THING, NO_THINGS]
        matching = self.matching(dice_weight=1.0)  # the masks alone: and they are the wrong way round
        selected = matching.select(layers, targets)
        masks = torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]]).expand(3, 2, 1, 2)
        things = DecodedMasks([torch.zeros(3, 2, 1, 2), masks], [])
        found = matching.assign(TrainingPredictions(layers.layers, things, [], NO_MASKS, []), selected, targets)
        assert found.location == selected.location_assignments
        assert [as_pairs(image) for image in found.location[0]] == [[(1, 0), (3, 1)], [(4, 0)], []]
        # among the kept ones; the second row of image 1 is padding, although its mask is the better one
        assert [as_pairs(image) for image in found.masks] == [[(0, 1), (1, 0)], [(0, 0)], []]

    def rematch(self, first: dict[str, float], second: dict[str, float], last: LocationLayer, masks: Tensor, targets):
        """Pairs of the second matching, per image, and the queries that were kept."""
        matching = PerLayerAssigner(matcher(**first), matcher(**second), 1)
        numbers = torch.zeros(*last.class_logits.shape[:2], 1)
        selected = matching.select(LocatedQueries(numbers, None, [last]), targets)
        predictions = TrainingPredictions([last], DecodedMasks([torch.zeros_like(masks), masks], []), [], NO_MASKS, [])
        found = matching.assign(predictions, selected, targets)
        return [as_pairs(image) for image in found.masks], [kept.tolist() for kept in selected.kept]

    def test_second_matching_has_the_masks_of_each_image_s_own_queries(self):
        """The second image keeps two queries of three rows: its first two masks decide, not its last two."""
        targets = [gt([LEFT, RIGHT, LEFT], image_size=(8, 16)), TWO_THINGS]
        last = layer(torch.cat((sure(5, 0, 1, 0), sure(5, 0, None, 1))))
        left, right = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        for second, expected in (((left, right, left), [(0, 0), (1, 1)]), ((right, left, right), [(0, 1), (1, 0)])):
            masks = torch.stack((torch.stack((left, right, left)), torch.stack(second)))
            found, kept = self.rematch({"class_weight": 1.0}, {"dice_weight": 1.0}, last, masks, targets)
            assert kept == [[0, 1, 2], [0, 2]]
            assert found[1] == expected

    @pytest.mark.parametrize("weight", ["class_weight", "l1_weight", "giou_weight"])
    def test_second_matching_knows_class_and_box_of_the_kept(self, weight: str):
        """Queries 1 and 3 are kept, and each is now nearer to the other thing; query 0 is what query 3 is."""
        left, right, none = (0.25, 0.5, 0.5, 1.0), (0.75, 0.5, 0.5, 1.0), (0.5, 0.5, 0.1, 0.1)
        if weight == "class_weight":
            first, classes, boxes = {"l1_weight": 1.0}, sure(4, 0, 1, None, 0), [none, left, none, right]
        else:
            first, classes, boxes = {"class_weight": 1.0}, sure(4, None, 0, None, 1), [left, right, none, left]
        last = LocationLayer(classes, torch.tensor([boxes]))
        found, kept = self.rematch(first, {weight: 1.0}, last, torch.zeros(1, 2, 1, 2), [TWO_THINGS])
        assert kept == [[1, 3]]
        assert found == [[(0, 1), (1, 0)]]


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("targets", [[TWO_THINGS], [TWO_THINGS, NO_THINGS, ONE_THING]], ids=["one", "three"])
@pytest.mark.parametrize("queries_per_thing", [1, 3])
def test_one_wait_for_all_layers_and_images(num_layers: int, targets: list[PanopticTargets], queries_per_thing: int):
    logits = sure(6, 0, 1).expand(len(targets), -1, -1)
    queries = located(*[logits] * num_layers)._replace(proposals=layer(logits))
    one = matcher(class_weight=1.0, l1_weight=1.0, dice_weight=1.0)
    for matching in (SharedAssigner(one), PerLayerAssigner(one, one, queries_per_thing)):
        with count_host_waits() as in_select:
            selected = matching.select(queries, targets)
        masks = torch.zeros(*selected.queries.shape[:2], 4, 8)
        predictions = TrainingPredictions(queries.layers, DecodedMasks([masks], []), [], NO_MASKS, [], layer(logits))
        with count_host_waits() as in_assign:
            matching.assign(predictions, selected, targets)
        assert in_select.total == (0 if selected.kept is None else 1), str(in_select)
        assert in_assign.total == 1, str(in_assign)


class TestProposals:
    matcher = matcher(l1_weight=1.0)

    def chosen(self, proposals: LocationLayer, target: PanopticTargets) -> Assignment:
        return cheapest_tokens(self.matcher.cost(proposals.class_logits[0], proposals.locations[0], None, target))

    def test_several_tokens_for_each_thing_and_the_nearest_thing_for_each_token(self):
        """Centres of the things: x 0.25 and 0.75. The token at 0.49 is among the four cheapest of neither."""
        x = torch.tensor([0.26, 0.3, 0.4, 0.49, 0.6, 0.7, 0.76, 0.9, 0.25])
        boxes = torch.stack((x, torch.full_like(x, 0.5), torch.full_like(x, 0.5), torch.ones_like(x)), dim=-1)[None]
        proposals = LocationLayer(sure(9), boxes)
        pairs = self.chosen(proposals, TWO_THINGS)
        # left's four cheapest: tokens 8, 0, 1, 2; right's: 6, 5, 4 and 7; token 3 is nobody's
        assert as_pairs(pairs) == [(0, 0), (1, 0), (2, 0), (4, 1), (5, 1), (6, 1), (7, 1), (8, 0)]

    def test_a_claimed_token_goes_to_the_cheaper_claim(self):
        """Four tokens, all claimed by both things: 0.25 and 0.4 are nearer to left, 0.6 and 0.75 to right."""
        x = torch.tensor([0.25, 0.4, 0.6, 0.75])
        boxes = torch.stack((x, torch.full_like(x, 0.5), torch.full_like(x, 0.5), torch.ones_like(x)), dim=-1)[None]
        pairs = self.chosen(LocationLayer(sure(4), boxes), TWO_THINGS)
        assert as_pairs(pairs) == [(0, 0), (1, 0), (2, 1), (3, 1)]

    def test_every_thing_of_a_crowd_has_a_token(self):
        """Three things in one place, whose cheapest tokens are the same four; tokens far away are nobody's."""
        crowd = gt([(0, (0, 0, 8, 8))] * 3, image_size=(8, 16))
        x = torch.tensor([0.24, 0.25, 0.26, 0.27, 0.9, 0.91, 0.92])
        boxes = torch.stack((x, torch.full_like(x, 0.5), torch.full_like(x, 0.5), torch.ones_like(x)), dim=-1)[None]
        pairs = self.chosen(LocationLayer(sure(7), boxes), crowd)
        assert pairs.queries.tolist() == [0, 1, 2, 3] and set(pairs.things.tolist()) == {0, 1, 2}

    def test_more_things_than_tokens(self):
        crowd = gt([(0, (0, 0, 8, 8))] * 5, image_size=(8, 16))
        pairs = self.chosen(layer(sure(3)), crowd)
        assert pairs.queries.tolist() == [0, 1, 2] and len(set(pairs.things.tolist())) == 3

    def test_no_things_and_no_proposals(self):
        assert as_pairs(self.chosen(layer(sure(4)), NO_THINGS)) == []
        located_alone = located(sure(4))
        assert (
            PerLayerAssigner(self.matcher, self.matcher, 1).select(located_alone, [TWO_THINGS]).proposal_assignments
            == []
        )

    @pytest.mark.parametrize("kind", ["shared", "per layer"])
    def test_each_image_has_those_of_its_own_tokens(self, kind: str):
        """Beside the matching of the queries, whose matrices travel together with theirs."""
        x = torch.tensor([[0.9, 0.25, 0.26, 0.27, 0.28, 0.29], [0.75, 0.25, 0.3, 0.31, 0.9, 0.9]])
        boxes = torch.stack((x, *(torch.full_like(x, number) for number in (0.5, 0.5, 1.0))), dim=-1)
        proposals = LocationLayer(sure(6).expand(2, -1, -1), boxes)
        queries = located(torch.cat((sure(3, 0), sure(3, None, 0))))._replace(proposals=proposals)
        targets = [ONE_THING, ONE_THING]
        both = matcher(class_weight=1.0, l1_weight=1.0)
        matching = SharedAssigner(both) if kind == "shared" else PerLayerAssigner(both, both, 1)
        selected = matching.select(queries, targets)
        masks = torch.zeros(*selected.queries.shape[:2], 1, 2)
        predictions = TrainingPredictions(queries.layers, DecodedMasks([masks], []), [], NO_MASKS, [], proposals)
        found = matching.assign(predictions, selected, targets)
        assert [as_pairs(image) for image in found.location[0]] == [[(0, 0)], [(1, 0)]]
        assert [image.queries.tolist() for image in found.proposals] == [[1, 2, 3, 4], [0, 1, 2, 3]]


LOG2 = math.log(2)


class TestTerms:
    def test_focal(self):
        logits = torch.tensor([[0.0, math.log(3)]])
        # p = 1/2: 0.25 (1/2)^2 log 2 - 0.75 (1/2)^2 log 2
        # p = 3/4: 0.25 (1/4)^2 log 4/3 - 0.75 (3/4)^2 log 4
        expected = [(0.0625 - 0.1875) * LOG2, 0.015625 * math.log(4 / 3) - 0.421875 * math.log(4)]
        torch.testing.assert_close(focal_cost(logits, 0.25, 2.0), torch.tensor([expected]))

    def test_focal_of_other_weights(self):
        # p = 1/2: 0.4 (1/2)^3 log 2 - 0.6 (1/2)^3 log 2; p = 3/4: 0.4 (1/4)^3 log 4/3 - 0.6 (3/4)^3 log 4
        expected = [-0.2 / 8 * LOG2, 0.4 / 64 * math.log(4 / 3) - 0.6 * 27 / 64 * math.log(4)]
        logits = torch.tensor([[0.0, math.log(3)]])
        torch.testing.assert_close(focal_cost(logits, 0.4, 3.0), torch.tensor([expected]))

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

    @pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
    def test_autocast_changes_no_bit(self, given: torch.dtype):
        """Of no term: the product of masks in half precision moves the dice cost by 1e-3."""
        torch.manual_seed(0)
        target = gt([(0, (0, 0, 3, 5)), (1, (2, 2, 8, 8))])
        inputs = [x.to(given) for x in (torch.randn(9, 2), torch.rand(9, 4), torch.rand(9, 8, 8))]
        for name in ("class_weight", "l1_weight", "giou_weight", "dice_weight"):
            plain = matcher(**{name: 1.0}).cost(*inputs, target)
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(matcher(**{name: 1.0}).cost(*inputs, target), plain), name

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


@pytest.mark.parametrize(("spoilt", "value"), [(0, NAN), (1, NAN), (1, INF), (2, NAN), (2, INF)])
def test_predictions_that_are_not_finite_are_matched_last(spoilt: int, value: float):
    inputs = [torch.zeros(2, 1), torch.full((2, 4), 0.5), torch.full((2, 1, 1), 0.5)]
    inputs[spoilt][0] = value
    weights = {"class_weight": 1.0, "l1_weight": 1.0, "giou_weight": 1.0, "dice_weight": 1.0}
    cost = matcher(**weights).cost(*inputs, gt([(0, (0, 0, 4, 4))]))
    assert cost.isfinite().all() and cost[0, 0] > 1e8 > cost[1, 0]


def test_boxes_are_shares_of_the_image_without_padding():
    target = gt([(0, (2, 1, 6, 9))], image_size=(10, 20), padded_size=(16, 32))
    assert target.image_scale.tolist() == [20, 10, 20, 10]
    # cx = (2 + 6) / 2 / 20, cy = (1 + 9) / 2 / 10, w = 4 / 20, h = 8 / 10
    torch.testing.assert_close(target_locations(target, 4), torch.tensor([[0.2, 0.5, 0.2, 0.8]]))


def test_mass_centre_is_the_mean_of_the_pixels_not_of_the_box():
    target = gt([(0, (0, 0, 2, 2))], image_size=(5, 4), padded_size=(8, 8))
    target.thing_masks[0, 0, 1] = False  # an L: (0.5, 0.5), (0.5, 1.5), (1.5, 1.5)
    # x = 2.5 / 3 / 4, y = 3.5 / 3 / 5; the box's centre is 0.25, 0.2
    torch.testing.assert_close(target_locations(target, 2), torch.tensor([[2.5 / 12, 3.5 / 15]]))


def test_one_pixel():
    target = gt([(0, (3, 1, 4, 2))], image_size=(2, 8))
    torch.testing.assert_close(target_locations(target, 2), torch.tensor([[3.5 / 8, 1.5 / 2]]))
    torch.testing.assert_close(target_locations(target, 4), torch.tensor([[3.5 / 8, 1.5 / 2, 1 / 8, 1 / 2]]))


def test_no_things():
    assert target_locations(gt(), 4).shape == (0, 4)
    assert target_locations(gt(), 2).shape == (0, 2)
