"""When things are matched, and which queries the mask decoder learns on: the paper's way and the released one."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from psf.losses.matcher import Assignment, HungarianMatcher, solve
from psf.predictions import LocatedQueries, PanopticTargets, TrainingPredictions

__all__ = ["MaskQueries", "PerLayerMatching", "SharedMatching", "ThingAssignments"]


class MaskQueries(NamedTuple):
    """The thing queries that go on to the mask decoder in training."""

    queries: Tensor  # (B, M, D); rows beyond an image's own number are padding
    position: Tensor | None  # (B, M, D), theirs
    kept: list[Tensor] | None  # per image, the (M_b,) positions among all thing queries; None: all of them
    location_assignments: list[list[Assignment]]  # per location layer and image, if already known


class ThingAssignments(NamedTuple):
    """Who answers for which thing."""

    location: list[list[Assignment]]  # per location layer, per image; among all thing queries
    masks: list[Assignment]  # per image; among the queries that the mask decoder was given


@dataclasses.dataclass(frozen=True)
class SharedMatching:
    """The paper: all queries are decoded; one assignment, on the last layer's class, location and mask, serves all.

    Args:
        matcher: with class, location and mask weights.
    """

    matcher: HungarianMatcher

    def select(self, located: LocatedQueries, targets: list[PanopticTargets]) -> MaskQueries:
        """All thing queries."""
        return MaskQueries(located.queries, located.position, None, [])

    def assign(
        self, predictions: TrainingPredictions, selected: MaskQueries, targets: list[PanopticTargets]
    ) -> ThingAssignments:
        """Match once; the same pairs for every layer."""
        layers = predictions.location_layers
        logits = predictions.thing_class_logits[-1] if predictions.thing_class_logits else layers[-1].class_logits
        locations = layers[-1].locations if layers else None
        pairs = self.matcher(logits, locations, predictions.things.mask_scores[-1], targets)
        return ThingAssignments([pairs] * len(layers), pairs)


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
        return MaskQueries(chosen.queries, chosen.position, kept, assignments)

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
        return ThingAssignments(selected.location_assignments, pairs)
