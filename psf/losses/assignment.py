"""Target assignment: match queries to things (section 3.4), and select the queries that train the mask decoder.

`SharedAssigner` is the paper's assignment, `PerLayerAssigner` that of the released code; both use `HungarianMatcher`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from psf.ops.precision import at_least_float32
from psf.ops.transfer import download, upload_together
from psf.structures import LocatedQueries, LocationLayer, PanopticTargets, TrainingPredictions

__all__ = [
    "TOKENS_PER_THING",
    "Assigner",
    "Assignment",
    "HungarianMatcher",
    "MaskQueries",
    "PerLayerAssigner",
    "SharedAssigner",
    "ThingAssignments",
    "cheapest_tokens",
    "dice_cost",
    "focal_cost",
    "resize_masks",
    "solve",
    "target_locations",
]

DICE_COST_EPS = 1e-3  # added to both squared sums
NOT_FINITE_COST = 1e9  # in place of a cost that is NaN or infinite
MASKS_AT_ONCE = 8  # that are converted to floats at full size
TOKENS_PER_THING = 4  # approximate number of tokens that learn to propose each thing


class Assignment(NamedTuple):
    """Matched indices of one image: query `queries[i]` is matched to thing `things[i]`; ascending in the queries."""

    queries: Tensor  # (M,) long
    things: Tensor  # (M,) long


class MaskQueries(NamedTuple):
    """The thing queries that the mask decoder receives in training."""

    queries: Tensor  # (B, M, D); an image with fewer queries than M is padded
    query_pos: Tensor | None  # (B, M, D), their positional part
    kept: list[Tensor] | None  # per image, the (M_b,) indices among all thing queries; None: all of them
    location_assignments: list[list[Assignment]]  # per location layer and image; empty until assigned
    boxes_cxcywh_norm: Tensor | None = None  # (B, M, 4), their predicted boxes
    proposal_assignments: Sequence[Assignment] = ()  # per image; empty until assigned


class ThingAssignments(NamedTuple):
    """All assignments of a batch."""

    location: list[list[Assignment]]  # per location layer, per image; indices among all thing queries
    masks: list[Assignment]  # per image; indices among the queries that the mask decoder received
    proposals: Sequence[Assignment] = ()  # per image; indices among all tokens


class Assigner(Protocol):
    """How the model matches its queries to the ground truth in training."""

    def select(self, located: LocatedQueries, targets: list[PanopticTargets]) -> MaskQueries:
        """The thing queries that the mask decoder receives; called before it runs."""

    def assign(
        self, predictions: TrainingPredictions, selected: MaskQueries, targets: list[PanopticTargets]
    ) -> ThingAssignments:
        """All assignments, from the predictions for the queries that `select` has returned."""


@dataclasses.dataclass(frozen=True)
class SharedAssigner:
    """The paper's assignment: all queries are decoded, and one assignment by the last layer's predictions serves all.

    Args:
        matcher: with class, location and mask weights.
    """

    matcher: HungarianMatcher

    def select(self, located: LocatedQueries, targets: list[PanopticTargets]) -> MaskQueries:
        """All thing queries."""
        return MaskQueries(located.queries, located.query_pos, None, [], located.boxes_cxcywh_norm)

    def assign(
        self, predictions: TrainingPredictions, selected: MaskQueries, targets: list[PanopticTargets]
    ) -> ThingAssignments:
        """Match once; all layers use the same assignment."""
        layers = predictions.location_layers
        logits = predictions.thing_class_logits[-1] if predictions.thing_class_logits else layers[-1].class_logits
        locations = layers[-1].locations if layers else None
        costs = self.matcher.costs(logits, locations, predictions.things.mask_scores[-1], targets)
        costs += _proposal_costs(self.matcher, predictions.proposals, targets)
        on_host = download(costs)  # all matrices together: the only wait for the device
        found = [*map(solve, on_host[: len(targets)]), *map(cheapest_tokens, on_host[len(targets) :])]
        found = upload_assignments(found, costs[0].device)
        matched = found[: len(targets)]
        return ThingAssignments([matched] * len(layers), matched, found[len(targets) :])


@dataclasses.dataclass(frozen=True)
class PerLayerAssigner:
    """The released code: each location layer has its own assignment; the mask decoder receives the matched queries.

    Args:
        matcher: for the location layers, without mask cost.
        second_matcher: for the matched queries, with mask cost.
        queries_per_thing: rounds of matching on the last location layer; each round matches one more query per thing.
    """

    matcher: HungarianMatcher
    second_matcher: HungarianMatcher
    queries_per_thing: int

    def select(self, located: LocatedQueries, targets: list[PanopticTargets]) -> MaskQueries:
        """The matched queries of the last location layer, in ascending order; padded with the first query."""
        batch = len(targets)
        costs = [
            cost
            for layer in located.layers
            for cost in self.matcher.costs(layer.class_logits, layer.locations, None, targets)
        ]
        num_layer_costs = len(costs)
        costs += _proposal_costs(self.matcher, located.proposals, targets)
        on_host = download(costs)  # all matrices together: the only wait for the device
        layer_costs = on_host[:num_layer_costs]
        found = [*map(solve, layer_costs), *map(cheapest_tokens, on_host[num_layer_costs:])]
        pairs = zip(found[num_layer_costs - batch : num_layer_costs], layer_costs[-batch:], strict=True)
        kept = [self._keep(matched, cost) for matched, cost in pairs]
        indices = torch.nn.utils.rnn.pad_sequence(kept, batch_first=True)
        if indices.shape[1] == 0:  # no thing in the batch: one padding query keeps the mask decoder in the graph
            indices = indices.new_zeros(len(kept), 1)
        device = costs[0].device
        indices, *kept = upload_together([indices, *kept], device)
        found = upload_assignments(found, device)
        by_layer = [found[i : i + batch] for i in range(0, num_layer_costs, batch)]
        chosen = located.pick(indices)
        return MaskQueries(
            chosen.queries, chosen.query_pos, kept, by_layer, chosen.boxes_cxcywh_norm, found[num_layer_costs:]
        )

    def _keep(self, matched: Assignment, cost: Tensor) -> Tensor:
        """The queries of one image that the mask decoder receives, by the cost (N, G) of the last layer on the CPU."""
        kept, remaining = [matched.queries.numpy()], np.arange(len(cost))
        for _ in range(self.queries_per_thing - 1):
            remaining = np.setdiff1d(remaining, kept[-1])
            kept.append(remaining[linear_sum_assignment(cost.numpy()[remaining])[0]])
        return torch.from_numpy(np.sort(np.concatenate(kept)))

    def assign(
        self, predictions: TrainingPredictions, selected: MaskQueries, targets: list[PanopticTargets]
    ) -> ThingAssignments:
        """Match the decoded queries again, with mask cost."""
        assert selected.kept is not None
        last, masks = predictions.location_layers[-1], predictions.things.mask_scores[-1]
        logits = [last.class_logits[b][kept] for b, kept in enumerate(selected.kept)]
        locations = [last.locations[b][kept] for b, kept in enumerate(selected.kept)]
        own_masks = [masks[b, : len(kept)] for b, kept in enumerate(selected.kept)]
        matched = self.second_matcher(logits, locations, own_masks, targets)
        return ThingAssignments(selected.location_assignments, matched, selected.proposal_assignments)


def _proposal_costs(
    matcher: HungarianMatcher, proposals: LocationLayer | None, targets: list[PanopticTargets]
) -> list[Tensor]:
    """The cost (T, G) of each image for `cheapest_tokens`; empty if there are no proposals."""
    return [] if proposals is None else matcher.costs(proposals.class_logits, proposals.locations, None, targets)


def cheapest_tokens(cost: Tensor) -> Assignment:
    """Match several tokens to each thing: one by the cheapest one-to-one assignment, and other tokens of low cost.

    The other tokens are the thing's `TOKENS_PER_THING` cheapest. Excluded are tokens that are assigned one-to-one, and
    tokens among the cheapest of another thing with a lower cost. So every thing has a token, also in crowded images.

    Args:
        cost: (T, G) on the CPU, of T tokens.
    """
    if cost.shape[1] == 0:
        return solve(cost)
    cheapest = cost.topk(min(TOKENS_PER_THING, len(cost)), dim=0, largest=False).indices
    is_claimed = torch.zeros_like(cost, dtype=torch.bool).scatter_(0, cheapest, True)
    best, thing = cost.masked_fill(~is_claimed, torch.inf).min(dim=1)
    assigned = solve(cost)
    best[assigned.queries], thing[assigned.queries] = 0.0, assigned.things
    tokens = torch.from_numpy(torch.isfinite(best).numpy().nonzero()[0])
    return Assignment(tokens, thing[tokens])


class HungarianMatcher:
    """Minimizes class + location + mask cost over all one-to-one assignments of queries to things.

    Args:
        class_weight: weight of the focal class cost.
        l1_weight: weight of the L1 distance of boxes, or of centers of mass, in units of the image.
        giou_weight: weight of the negative generalized IoU; boxes only.
        dice_weight: weight of the dice cost of masks.
        focal_alpha: weight of the positive class in the focal cost.
        focal_gamma: exponent of the focal cost.
    """

    def __init__(
        self,
        *,
        class_weight: float,
        l1_weight: float,
        giou_weight: float,
        dice_weight: float,
        focal_alpha: float,
        focal_gamma: float,
    ):
        self.class_weight, self.l1_weight, self.giou_weight = class_weight, l1_weight, giou_weight
        self.dice_weight, self.focal_alpha, self.focal_gamma = dice_weight, focal_alpha, focal_gamma

    @torch.no_grad()
    def cost(
        self, class_logits: Tensor, locations: Tensor | None, mask_scores: Tensor | None, target: PanopticTargets
    ) -> Tensor:
        """The cost of matching each query to each thing in one image, computed without autocast.

        Args:
            class_logits: (N, K_things).
            locations: (N, 4) boxes_cxcywh_norm or (N, 2) centers of mass; None: no location cost.
            mask_scores: (N, h, w); None: no mask cost.
            target: the ground truth, with G things.

        Returns:
            (N, G), float32 or as precise as the inputs; finite, also if a prediction is not.
        """
        with torch.autocast(class_logits.device.type, enabled=False):
            class_cost = focal_cost(at_least_float32(class_logits), self.focal_alpha, self.focal_gamma)
            terms = [self.class_weight * class_cost[:, target.thing_classes]]
            if locations is not None:
                locations = at_least_float32(locations)
                gt = target_locations(target, locations.shape[-1]).to(locations.dtype)
                terms.append(self.l1_weight * torch.cdist(locations, gt, p=1))
                if locations.shape[-1] == 4:
                    boxes = box_convert(locations, "cxcywh", "xyxy") * target.image_scale
                    terms.append(-self.giou_weight * generalized_box_iou(boxes, target.thing_boxes_xyxy_px))
            if mask_scores is not None:
                terms.append(self.dice_weight * dice_cost(at_least_float32(mask_scores), target.thing_masks))
            total = torch.stack(terms).sum(0)
        # NaN in a prediction: matched last. The loss shows it, in all processes together, and the trainer handles it.
        return torch.nan_to_num(total, nan=NOT_FINITE_COST, posinf=NOT_FINITE_COST, neginf=NOT_FINITE_COST)

    def costs(
        self,
        class_logits: Tensor | list[Tensor],
        locations: Tensor | list[Tensor] | None,
        mask_scores: Tensor | list[Tensor] | None,
        targets: list[PanopticTargets],
    ) -> list[Tensor]:
        """The cost of each image of a batch; inputs as in `cost`, with a batch dimension or as a list over images."""
        return [
            self.cost(
                class_logits[b],
                None if locations is None else locations[b],
                None if mask_scores is None else mask_scores[b],
                target,
            )
            if len(target.thing_classes)
            else at_least_float32(class_logits[b]).new_empty(len(class_logits[b]), 0)
            for b, target in enumerate(targets)
        ]

    def __call__(
        self,
        class_logits: Tensor | list[Tensor],
        locations: Tensor | list[Tensor] | None,
        mask_scores: Tensor | list[Tensor] | None,
        targets: list[PanopticTargets],
    ) -> list[Assignment]:
        """Match each image of a batch; inputs as in `costs`. The host waits for the device once."""
        costs = self.costs(class_logits, locations, mask_scores, targets)
        return upload_assignments([solve(cost) for cost in download(costs)], targets[0].thing_classes.device)


def solve(cost: Tensor) -> Assignment:
    """The cheapest assignment for a cost matrix (N, G) on the CPU, with min(N, G) matched indices."""
    return Assignment(*(torch.from_numpy(indices) for indices in linear_sum_assignment(cost.numpy())))


def upload_assignments(assignments: Sequence[Assignment], device: torch.device) -> list[Assignment]:
    """The assignments on a device, in one copy."""
    parts = upload_together([indices for assignment in assignments for indices in assignment], device)
    return [Assignment(queries, things) for queries, things in zip(parts[::2], parts[1::2], strict=True)]


def focal_cost(logits: Tensor, alpha: float, gamma: float, eps: float = 1e-12) -> Tensor:
    """Focal loss of query n with target class k, minus the loss without it: (N, K) -> (N, K)."""
    p = logits.sigmoid()
    positive = -(p + eps).log() * alpha * (1 - p) ** gamma
    negative = -(1 - p + eps).log() * (1 - alpha) * p**gamma
    return positive - negative


def dice_cost(mask_scores: Tensor, masks: Tensor) -> Tensor:
    """1 - dice of each query and thing, at the size of the scores: (N, h, w) and (G, H, W) bool -> (N, G)."""
    gt = resize_masks(masks, mask_scores.shape[-2:], mask_scores.dtype).flatten(1)
    scores = mask_scores.flatten(1)
    squares = scores.square().sum(1)[:, None] + gt.square().sum(1)[None] + 2 * DICE_COST_EPS
    return 1 - 2 * (scores @ gt.T) / squares


def resize_masks(masks: Tensor, size: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """(M, H, W) -> (M, *size) bilinearly, as `dtype` (None: that of `masks`).

    M may be 0. Bool masks are converted a few at a time: at full size, floats of all of them take much memory.
    """
    parts = masks.split(MASKS_AT_ONCE) if masks.dtype == torch.bool else [masks]
    resized = [
        # As channels, because only the first dimension may have size 0.
        F.interpolate(part[:, None].to(dtype or part.dtype), size=list(size), mode="bilinear", align_corners=False)
        for part in parts
    ]
    return torch.cat(resized)[:, 0]


def target_locations(target: PanopticTargets, location_dim: int) -> Tensor:
    """Ground truth of the auxiliary head, for each thing.

    Returns:
        (G, 4) boxes_cxcywh_norm for `location_dim` 4, (G, 2) the masks' centers of mass for 2; in [0, 1].
    """
    return target.thing_mass_centers_norm if location_dim == 2 else target.thing_boxes_cxcywh_norm
