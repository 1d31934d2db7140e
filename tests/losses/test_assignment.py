"""Which queries the mask decoder learns on, and whose assignment serves which layer."""

from __future__ import annotations

import torch
from torch import Tensor

from psf.losses import PerLayerAssigner, SharedAssigner
from psf.losses.assignment import assign_proposals
from psf.structures import DecodedMasks, LocatedQueries, LocationLayer, TrainingPredictions
from tests.losses.scenes import gt, matcher

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
        found = self.assign([sure(4)], [sure(4), sure(4)], [torch.zeros(1, 4, 1, 2), left_and_right])
        assert as_pairs(found.masks[0]) == [(0, 1), (2, 0)]

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

    def test_second_matching_knows_class_and_box_of_the_kept(self):
        last = sure(5, None, 0, None, 1)
        matching = self.matching(class_weight=1.0)
        selected = matching.select(located(last), [TWO_THINGS])
        things = DecodedMasks([torch.zeros(1, 2, 1, 2)], [])
        found = matching.assign(TrainingPredictions([layer(last)], things, [], NO_MASKS, []), selected, [TWO_THINGS])
        assert as_pairs(found.masks[0]) == [(0, 0), (1, 1)]


class TestProposals:
    matcher = matcher(l1_weight=1.0)

    def test_several_tokens_for_each_thing_and_the_nearest_thing_for_each_token(self):
        """Centres of the things: x 0.25 and 0.75. The token at 0.49 is among the four cheapest of neither."""
        x = torch.tensor([0.26, 0.3, 0.4, 0.49, 0.6, 0.7, 0.76, 0.9, 0.25])
        boxes = torch.stack((x, torch.full_like(x, 0.5), torch.full_like(x, 0.5), torch.ones_like(x)), dim=-1)[None]
        proposals = LocationLayer(sure(9), boxes)
        [pairs] = assign_proposals(self.matcher, proposals, [TWO_THINGS])
        # left's four cheapest: tokens 8, 0, 1, 2; right's: 6, 5, 4 and 7; token 3 is nobody's
        assert as_pairs(pairs) == [(0, 0), (1, 0), (2, 0), (4, 1), (5, 1), (6, 1), (7, 1), (8, 0)]

    def test_a_claimed_token_goes_to_the_cheaper_claim(self):
        """Four tokens, all claimed by both things: 0.25 and 0.4 are nearer to left, 0.6 and 0.75 to right."""
        x = torch.tensor([0.25, 0.4, 0.6, 0.75])
        boxes = torch.stack((x, torch.full_like(x, 0.5), torch.full_like(x, 0.5), torch.ones_like(x)), dim=-1)[None]
        [pairs] = assign_proposals(self.matcher, LocationLayer(sure(4), boxes), [TWO_THINGS])
        assert as_pairs(pairs) == [(0, 0), (1, 0), (2, 1), (3, 1)]

    def test_every_thing_of_a_crowd_has_a_token(self):
        """Three things in one place, whose cheapest tokens are the same four; tokens far away are nobody's."""
        crowd = gt([(0, (0, 0, 8, 8))] * 3, image_size=(8, 16))
        x = torch.tensor([0.24, 0.25, 0.26, 0.27, 0.9, 0.91, 0.92])
        boxes = torch.stack((x, torch.full_like(x, 0.5), torch.full_like(x, 0.5), torch.ones_like(x)), dim=-1)[None]
        [pairs] = assign_proposals(self.matcher, LocationLayer(sure(7), boxes), [crowd])
        assert pairs.queries.tolist() == [0, 1, 2, 3] and set(pairs.things.tolist()) == {0, 1, 2}

    def test_more_things_than_tokens(self):
        crowd = gt([(0, (0, 0, 8, 8))] * 5, image_size=(8, 16))
        [pairs] = assign_proposals(self.matcher, layer(sure(3)), [crowd])
        assert pairs.queries.tolist() == [0, 1, 2] and len(set(pairs.things.tolist())) == 3

    def test_no_things_and_no_proposals(self):
        [pairs] = assign_proposals(self.matcher, layer(sure(4)), [NO_THINGS])
        assert as_pairs(pairs) == []
        assert assign_proposals(self.matcher, None, [TWO_THINGS]) == []
