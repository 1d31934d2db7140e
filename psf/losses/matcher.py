"""Which query answers for which thing: the cheapest one-to-one assignment (section 3.4)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from psf.losses.boxes import image_scale, target_locations
from psf.precision import at_least_float32
from psf.predictions import PanopticTargets

__all__ = ["Assignment", "HungarianMatcher", "dice_cost", "focal_cost"]

DICE_COST_EPS = 1e-3  # added to each of the two squared sums


class Assignment(NamedTuple):
    """Pairs of one image: query `queries[i]` answers for thing `things[i]`; ascending in the queries."""

    queries: Tensor  # (M,) long
    things: Tensor  # (M,) long


class HungarianMatcher:
    """Minimises class + location + mask cost over all one-to-one assignments of queries to things.

    Args:
        class_weight: of the focal class cost.
        l1_weight: of the L1 distance of boxes, or of centres of mass, in units of the image.
        giou_weight: of minus the generalised IoU; boxes only.
        dice_weight: of the dice cost of masks.
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
        """The cost of each pair in one image.

        Args:
            class_logits: (N, K_things).
            locations: (N, 4) boxes_cxcywh_norm or (N, 2) centres; None: no such cost.
            mask_scores: (N, h, w); None: no such cost.
            target: the truth, with G things.

        Returns:
            (N, G), float32 or as precise as the inputs.

        Raises:
            ValueError: if a cost is not finite, naming the term.
        """
        terms = {
            "class": self.class_weight
            * focal_cost(at_least_float32(class_logits), self.focal_alpha, self.focal_gamma)[:, target.thing_classes]
        }
        if locations is not None:
            locations = at_least_float32(locations)
            wanted = target_locations(target, locations.shape[-1]).to(locations.dtype)
            terms["L1"] = self.l1_weight * torch.cdist(locations, wanted, p=1)
            if locations.shape[-1] == 4:
                boxes = box_convert(locations, "cxcywh", "xyxy") * image_scale(target)
                terms["GIoU"] = -self.giou_weight * generalized_box_iou(boxes, target.thing_boxes_xyxy_px)
        if mask_scores is not None:
            terms["dice"] = self.dice_weight * dice_cost(at_least_float32(mask_scores), target.thing_masks)
        total = torch.stack(list(terms.values())).sum(0)
        if not torch.isfinite(total).all():
            bad = [name for name, term in terms.items() if not torch.isfinite(term).all()]
            raise ValueError(
                f"the matching cost is not finite (in: {', '.join(bad)}): the model's outputs have become NaN or "
                "infinite; look at the last losses, and lower SOLVER.BASE_LR or SOLVER.CLIP_GRADIENTS.CLIP_VALUE"
            )
        return total

    def __call__(
        self,
        class_logits: Tensor | list[Tensor],
        locations: Tensor | list[Tensor] | None,
        mask_scores: Tensor | list[Tensor] | None,
        targets: list[PanopticTargets],
    ) -> list[Assignment]:
        """Match each image of a batch; inputs as in `cost`, with a leading B or as a list over images."""
        assignments = []
        for b, target in enumerate(targets):
            if len(target.thing_classes) == 0:
                none = target.thing_classes.new_zeros(0)
                assignments.append(Assignment(none, none))
                continue
            cost = self.cost(
                class_logits[b],
                None if locations is None else locations[b],
                None if mask_scores is None else mask_scores[b],
                target,
            )
            assignments.append(solve(cost))
        return assignments


def solve(cost: Tensor) -> Assignment:
    """The cheapest assignment for a cost matrix (N, G); min(N, G) pairs."""
    queries, things = linear_sum_assignment(cost.cpu().numpy())
    return Assignment(
        torch.as_tensor(queries, dtype=torch.long, device=cost.device),
        torch.as_tensor(things, dtype=torch.long, device=cost.device),
    )


def focal_cost(logits: Tensor, alpha: float, gamma: float, eps: float = 1e-12) -> Tensor:
    """What calling a query class k would cost, less what not calling it k would: (N, K) -> (N, K)."""
    p = logits.sigmoid()
    positive = -(p + eps).log() * alpha * (1 - p) ** gamma
    negative = -(1 - p + eps).log() * (1 - alpha) * p**gamma
    return positive - negative


def dice_cost(mask_scores: Tensor, masks: Tensor) -> Tensor:
    """1 - dice of each pair, at the size of the scores: (N, h, w), (G, H, W) bool -> (N, G)."""
    wanted = masks[:, None].to(mask_scores.dtype)
    wanted = F.interpolate(wanted, size=mask_scores.shape[-2:], mode="bilinear", align_corners=False)
    scores, wanted = mask_scores.flatten(1), wanted.flatten(1)
    squares = scores.square().sum(1)[:, None] + wanted.square().sum(1)[None] + 2 * DICE_COST_EPS
    return 1 - 2 * (scores @ wanted.T) / squares
