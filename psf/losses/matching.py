"""When things are matched, and which queries the mask decoder learns on: the paper's way and the released one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from psf.losses.matcher import Assignment, HungarianMatcher, solve
from psf.predictions import LocatedQueries, LocationLayer, PanopticTargets, TrainingPredictions

__all__ = ["MaskQueries", "PerLayerMatching", "SharedMatching", "ThingAssignments", "match_proposals"]

TOKENS_PER_THING = 4  # that learn to propose it, about


class MaskQueries(NamedTuple):
    """The thing queries that go on to the mask decoder in training."""

    queries: Tensor  # (B, M, D); rows beyond an image's own number are padding
    position: Tensor | None  # (B, M, D), theirs
    kept: list[Tensor] | None  # per image, the (M_b,) positions among all thing queries; None: all of them
    location_assignments: list[list[Assignment]]  # per location layer and image, if already known
    boxes_cxcywh_norm: Tensor | None = None  # (B, M, 4), theirs


class ThingAssignments(NamedTuple):
    """Who answers for which thing."""

    location: list[list[Assignment]]  # per location layer, per image; among all thing queries
    masks: list[Assignment]  # per image; among the queries that the mask decoder was given
    proposals: Sequence[Assignment] = ()  # per image; among all tokens


@dataclasses.dataclass(frozen=True)
class SharedMatching:
    """The paper: all queries are decoded; one assignment, on the last layer's class, location and mask, serves all.

    Args:
        matcher: with class, location and mask weights.
    """

    matcher: HungarianMatcher

    def select(self, located: LocatedQueries, targets: list[PanopticTargets]) -> MaskQueries:
        """All thing queries."""
        return MaskQueries(located.queries, located.position, None, [], located.boxes_cxcywh_norm)

    def assign(
        self, predictions: TrainingPredictions, selected: MaskQueries, targets: list[PanopticTargets]
    ) -> ThingAssignments:
        """Match once; the same pairs for every layer."""
        layers = predictions.location_layers
        logits = predictions.thing_class_logits[-1] if predictions.thing_class_logits else layers[-1].class_logits
        locations = layers[-1].locations if layers else None
        pairs = self.matcher(logits, locations, predictions.things.mask_scores[-1], targets)
        proposals = match_proposals(self.matcher, predictions.proposals, targets)
        return ThingAssignments([pairs] * len(layers), pairs, proposals)


@dataclasses.dataclass(frozen=True)
class PerLayerMatching:
    """The released code: each location layer is matched alone, and the mask decoder is given the matched queries.

    Args:
        matcher: of the location layers, without mask cost.
        second_matcher: of the kept queries, with mask cost.
        queries_per_thing: rounds of matching on the last location layer; each round takes one more query per thing.
    """

    matcher: HungarianMatcher
    second_matcher: HungarianMatcher
    queries_per_thing: int

    def select(self, located: LocatedQueries, targets: list[PanopticTargets]) -> MaskQueries:
        """The matched queries of the last location layer, in ascending order; rows padded with the first query."""
        assignments = [self.matcher(x.class_logits, x.locations, None, targets) for x in located.layers]
        last = located.layers[-1]
        kept = [
            self._keep(pairs, last.class_logits[b], last.locations[b], target)
            for b, (pairs, target) in enumerate(zip(assignments[-1], targets, strict=True))
        ]
        rows = torch.nn.utils.rnn.pad_sequence(kept, batch_first=True)
        if rows.shape[1] == 0:  # no thing in the batch: one padding row keeps the mask decoder in the graph
            rows = rows.new_zeros(len(kept), 1)
        chosen = located.pick(rows)
        return MaskQueries(chosen.queries, chosen.position, kept, assignments, chosen.boxes_cxcywh_norm)

    def _keep(self, pairs: Assignment, logits: Tensor, locations: Tensor, target: PanopticTargets) -> Tensor:
        kept = [pairs.queries]
        if len(target.thing_classes) and self.queries_per_thing > 1:
            cost = self.matcher.cost(logits, locations, None, target)
            free = torch.ones(len(cost), dtype=torch.bool, device=cost.device)
            for _ in range(self.queries_per_thing - 1):
                free[kept[-1]] = False
                left = free.nonzero()[:, 0]
                kept.append(left[solve(cost[left]).queries])
        return torch.cat(kept).sort().values

    def assign(
        self, predictions: TrainingPredictions, selected: MaskQueries, targets: list[PanopticTargets]
    ) -> ThingAssignments:
        """Match the kept queries again, now with their masks."""
        assert selected.kept is not None
        last, masks = predictions.location_layers[-1], predictions.things.mask_scores[-1]
        logits = [last.class_logits[b][kept] for b, kept in enumerate(selected.kept)]
        locations = [last.locations[b][kept] for b, kept in enumerate(selected.kept)]
        own_masks = [masks[b, : len(kept)] for b, kept in enumerate(selected.kept)]
        pairs = self.second_matcher(logits, locations, own_masks, targets)
        proposals = match_proposals(self.matcher, predictions.proposals, targets)
        return ThingAssignments(selected.location_assignments, pairs, proposals)


def match_proposals(
    matcher: HungarianMatcher, proposals: LocationLayer | None, targets: list[PanopticTargets]
) -> list[Assignment]:
    """Several tokens are matched to each thing: one by the cheapest one-to-one assignment, and others that are cheap.

    The others are the thing's `TOKENS_PER_THING` cheapest tokens, but those of the assignment and those for which
    another thing with the same claim is cheaper. So a thing in a crowd has a token, too.

    Args:
        matcher: whose class, L1 and GIoU costs are taken.
        proposals: what the T tokens predict; None: there are no proposals, and no assignments.
        targets: of the images.
    """
    if proposals is None:
        return []
    assignments = []
    for logits, boxes, target in zip(proposals.class_logits, proposals.locations, targets, strict=True):
        if len(target.thing_classes) == 0:
            none = target.thing_classes.new_zeros(0)
            assignments.append(Assignment(none, none))
            continue
        cost = matcher.cost(logits, boxes, None, target)  # (T, G)
        cheapest = cost.topk(min(TOKENS_PER_THING, len(cost)), dim=0, largest=False).indices
        is_claimed = torch.zeros_like(cost, dtype=torch.bool).scatter_(0, cheapest, True)
        best, thing = cost.masked_fill(~is_claimed, torch.inf).min(dim=1)
        assigned = solve(cost)
        best[assigned.queries], thing[assigned.queries] = 0.0, assigned.things
        tokens = torch.isfinite(best).nonzero()[:, 0]
        assignments.append(Assignment(tokens, thing[tokens]))
    return assignments
