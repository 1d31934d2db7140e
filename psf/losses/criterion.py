"""The training loss, L = lambda_things L_things + lambda_stuff L_stuff (section 3.4), and the mask health."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torchvision.ops import box_convert, sigmoid_focal_loss

from psf.errors import UserError
from psf.losses.assignment import TOKENS_PER_THING, Assignment, ThingAssignments, resize_masks, target_locations
from psf.ops.precision import at_least_float32
from psf.ops.transfer import upload
from psf.structures import DecodedMasks, LocationLayer, PanopticTargets, TrainingPredictions

__all__ = ["HeadCounts", "MaskHealth", "PanopticCriterion", "dice_loss", "measure_mask_health"]

DICE_EPS = 1e-6  # added to both squared sums
GIOU_EPS = 1e-6
BALANCES = ("fixed", "share")


class PanopticCriterion:
    """Deep supervision of masks and classes, and the auxiliary L_det, for things and stuff.

    Every term is a sum over matched things (present stuff classes) divided by their mean number per process, at least 1
    over all processes: the mean over processes equals the loss of one process for the whole batch.

    Args:
        cls_weight: lambda_cls for the mask decoder's thing classes.
        stuff_cls_weight: lambda_cls for the stuff classes.
        seg_weight: lambda_seg.
        det_cls_weight: weight of L_det's class term, including lambda_det.
        det_l1_weight: weight of L_det's L1 term, in units of the image.
        det_giou_weight: weight of L_det's GIoU term; boxes only.
        things_weight: lambda_things.
        stuff_weight: lambda_stuff.
        balance: "fixed", or "share": lambda_things and lambda_stuff are multiplied by each kind's share of the
            segments in the batch (released code).
        focal_alpha: weight of the positive class in focal losses.
        focal_gamma: exponent of focal losses.
        mask_upsampling: factor by which masks are enlarged for the dice loss.
    """

    def __init__(
        self,
        *,
        cls_weight: float,
        stuff_cls_weight: float,
        seg_weight: float,
        det_cls_weight: float,
        det_l1_weight: float,
        det_giou_weight: float,
        things_weight: float,
        stuff_weight: float,
        balance: str,
        focal_alpha: float,
        focal_gamma: float,
        mask_upsampling: int = 2,
    ):
        if balance not in BALANCES:
            raise UserError(f'MODEL.PSF.LOSS.BALANCE is "{balance}": expected one of {list(BALANCES)}')
        self.cls_weight, self.stuff_cls_weight, self.seg_weight = cls_weight, stuff_cls_weight, seg_weight
        self.det_cls_weight, self.det_l1_weight, self.det_giou_weight = det_cls_weight, det_l1_weight, det_giou_weight
        self.things_weight, self.stuff_weight, self.balance = things_weight, stuff_weight, balance
        self.focal_alpha, self.focal_gamma = focal_alpha, focal_gamma
        self.mask_upsampling = mask_upsampling

    def __call__(
        self, predictions: TrainingPredictions, assignments: ThingAssignments, targets: list[PanopticTargets]
    ) -> dict[str, Tensor]:
        """The terms by name; their sum is the total. All layers but the last have their index, from 0, as suffix.

        They are computed without autocast.
        """
        with torch.autocast(targets[0].thing_classes.device.type, enabled=False):
            return self._terms(predictions, assignments, targets)

    def _terms(
        self, predictions: TrainingPredictions, assignments: ThingAssignments, targets: list[PanopticTargets]
    ) -> dict[str, Tensor]:
        num_things, num_stuff = _count_segments(targets)
        things_scale, stuff_scale = self.things_weight / num_things, self.stuff_weight / num_stuff
        if self.balance == "share":
            things_scale = things_scale * num_things / (num_things + num_stuff)
            stuff_scale = stuff_scale * num_stuff / (num_things + num_stuff)
        losses = {}
        thing_terms = {
            **self._detection(predictions.location_layers, assignments.location, targets),
            **self._proposals(predictions.proposals, assignments.proposals, targets),
            **self._thing_classes(predictions.thing_class_logits, assignments.masks, targets),
            **self._masks("loss_seg_things", predictions.things.mask_scores, assignments.masks, targets, "thing"),
        }
        for name, value in thing_terms.items():
            losses[name] = value * things_scale
        present = [Assignment(target.stuff_classes, _positions(target.stuff_classes)) for target in targets]
        stuff_terms = {
            **self._stuff_classes(predictions.stuff_class_logits, targets),
            **self._masks("loss_seg_stuff", predictions.stuff.mask_scores, present, targets, "stuff"),
        }
        for name, value in stuff_terms.items():
            losses[name] = value * stuff_scale
        return losses

    def _detection(
        self, layers: list[LocationLayer], assignments: list[list[Assignment]], targets: list[PanopticTargets]
    ) -> dict[str, Tensor]:
        """L_det: focal, L1 and GIoU of the auxiliary head, at each location layer."""
        losses = {}
        for i, (layer, matched) in enumerate(zip(layers, assignments, strict=True)):
            losses.update(self._location(layer, matched, targets, _suffix(i, len(layers))))
        return losses

    def _proposals(
        self, proposals: LocationLayer | None, assignments: Sequence[Assignment], targets: list[PanopticTargets]
    ) -> dict[str, Tensor]:
        """The same for the predictions of all tokens, divided by the number of matched tokens."""
        if proposals is None:
            return {}
        terms = self._location(proposals, assignments, targets, "_proposals")
        return {name: value / TOKENS_PER_THING for name, value in terms.items()}

    def _location(
        self, layer: LocationLayer, assignments: Sequence[Assignment], targets: list[PanopticTargets], suffix: str
    ) -> dict[str, Tensor]:
        losses = {f"loss_det_cls{suffix}": self.det_cls_weight * self._focal(layer.class_logits, assignments, targets)}
        dim = layer.locations.shape[-1]
        pred = torch.cat([x[a.queries] for x, a in zip(at_least_float32(layer.locations), assignments, strict=True)])
        gt = [target_locations(t, dim)[a.things] for t, a in zip(targets, assignments, strict=True)]
        losses[f"loss_det_l1{suffix}"] = self.det_l1_weight * (pred - torch.cat(gt)).abs().sum()
        if dim == 4:
            scale = torch.cat([t.image_scale.expand(len(x), 4) for t, x in zip(targets, gt, strict=True)])
            pred_boxes, gt_boxes = (box_convert(x, "cxcywh", "xyxy") * scale for x in (pred, torch.cat(gt)))
            losses[f"loss_det_giou{suffix}"] = self.det_giou_weight * giou_loss(pred_boxes, gt_boxes).sum()
        return losses

    def _thing_classes(
        self, layers: list[Tensor], assignments: list[Assignment], targets: list[PanopticTargets]
    ) -> dict[str, Tensor]:
        """L_cls of things: each query against all thing classes; unmatched queries have no class."""
        return {
            f"loss_cls_things{_suffix(i, len(layers))}": self.cls_weight * self._focal(logits, assignments, targets)
            for i, logits in enumerate(layers)
        }

    def _stuff_classes(self, layers: list[Tensor], targets: list[PanopticTargets]) -> dict[str, Tensor]:
        """L_cls of stuff: whether the query's class is in the image."""
        losses = {}
        for i, logits in enumerate(layers):
            logits = at_least_float32(logits)
            present = torch.zeros_like(logits)
            for image, target in zip(present, targets, strict=True):
                image[target.stuff_classes] = 1.0
            value = sigmoid_focal_loss(logits, present, self.focal_alpha, self.focal_gamma, reduction="sum")
            losses[f"loss_cls_stuff{_suffix(i, len(layers))}"] = self.stuff_cls_weight * value
        return losses

    def _focal(self, logits: Tensor, assignments: Sequence[Assignment], targets: list[PanopticTargets]) -> Tensor:
        logits = at_least_float32(logits)
        is_class = torch.zeros_like(logits)
        for image, matched, target in zip(is_class, assignments, targets, strict=True):
            image[matched.queries, target.thing_classes[matched.things]] = 1.0
        return sigmoid_focal_loss(logits, is_class, self.focal_alpha, self.focal_gamma, reduction="sum")

    def _masks(
        self,
        name: str,
        layers: list[Tensor],
        assignments: list[Assignment],
        targets: list[PanopticTargets],
        kind: str,
    ) -> dict[str, Tensor]:
        """L_seg: dice of the matched masks, enlarged by `mask_upsampling`, at each layer and the tail."""
        if not layers:
            return {}
        layers = [at_least_float32(scores) for scores in layers]
        size = [self.mask_upsampling * s for s in layers[0].shape[-2:]]
        masks = [t.thing_masks[a.things] if kind == "thing" else t.stuff_masks for t, a in zip(targets, assignments)]
        gt = torch.cat([resize_masks(m, size, layers[0].dtype) for m in masks])
        losses = {}
        for i, scores in enumerate(layers):
            matched = torch.cat([x[a.queries] for x, a in zip(scores, assignments, strict=True)])
            # Without masks the sum is 0, but still in the graph: every process must send the same gradients.
            losses[f"{name}{_suffix(i, len(layers))}"] = (
                self.seg_weight * dice_loss(resize_masks(matched, size), gt).sum()
            )
        return losses


def dice_loss(mask_scores: Tensor, masks: Tensor) -> Tensor:
    """1 - 2 sum(m t) / (sum(m^2) + sum(t^2)) per mask: (M, h, w) scores >= 0 and gt in [0, 1] -> (M,)."""
    scores, masks = mask_scores.flatten(1), masks.flatten(1)
    squares = (scores.square().sum(1) + DICE_EPS) + (masks.square().sum(1) + DICE_EPS)
    return 1 - 2 * (scores * masks).sum(1) / squares


def giou_loss(boxes: Tensor, gt: Tensor) -> Tensor:
    """1 - generalized IoU of each pair: (M, 4) and (M, 4) boxes_xyxy -> (M,).

    torchvision's `generalized_box_iou_loss` has the same values and gradients, but selects the boxes that overlap with
    a mask, and so waits for the device in each call.
    """
    x0, y0, x1, y1 = boxes.unbind(dim=-1)
    gt_x0, gt_y0, gt_x1, gt_y1 = gt.unbind(dim=-1)
    left, top = torch.max(x0, gt_x0), torch.max(y0, gt_y0)
    right, bottom = torch.min(x1, gt_x1), torch.min(y1, gt_y1)
    overlaps = (bottom > top) & (right > left)
    intersection = torch.where(overlaps, (right - left) * (bottom - top), 0.0)
    union = (x1 - x0) * (y1 - y0) + (gt_x1 - gt_x0) * (gt_y1 - gt_y0) - intersection
    iou = intersection / (union + GIOU_EPS)
    width = torch.max(x1, gt_x1) - torch.min(x0, gt_x0)
    height = torch.max(y1, gt_y1) - torch.min(y0, gt_y0)
    hull = width * height
    return 1 - (iou - (hull - union) / (hull + GIOU_EPS))


def _count_segments(targets: list[PanopticTargets]) -> tuple[Tensor, Tensor]:
    """Numbers of things and of stuff segments per process, each at least 1 in the whole batch."""
    device = targets[0].thing_classes.device
    counts = [sum(len(t.thing_classes) for t in targets), sum(len(t.stuff_classes) for t in targets)]
    numbers = upload(torch.tensor(counts, dtype=torch.float32), device)
    world_size = 1
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(numbers)
        world_size = dist.get_world_size()
    num_things, num_stuff = numbers.clamp(min=1) / world_size
    return num_things, num_stuff


def _positions(x: Tensor) -> Tensor:
    return torch.arange(len(x), device=x.device)


def _suffix(i: int, num_layers: int) -> str:
    return "" if i == num_layers - 1 else f"_{i}"


class HeadCounts(NamedTuple):
    """Counts for the mask heads of one decoder, over the matched masks of one batch."""

    above_zero: Tensor  # (heads,) int64 pixels with a score above 0; the decoder's layers in order, then its tail
    above_threshold: Tensor  # (heads,) int64 pixels with a score above the mask threshold
    num_pixels: int  # of all matched masks at the finest level, padding included


class MaskHealth(NamedTuple):
    """Counts of one training batch; None if the model has no such decoder or the batch no ground truth for it."""

    things: HeadCounts | None  # with joint queries, things and stuff
    stuff: HeadCounts | None


@torch.no_grad()
def measure_mask_health(
    predictions: TrainingPredictions,
    assignments: ThingAssignments,
    targets: list[PanopticTargets],
    mask_threshold: float,
) -> MaskHealth:
    """Count the mask pixels of matched things and present stuff classes, for each mask head.

    A ReLU head without a pixel above 0 receives no gradient. The counts stay on the device until they are read.

    Args:
        predictions: of a batch, in training.
        assignments: matched indices of the thing queries.
        targets: one per image.
        mask_threshold: a pixel belongs to a mask where its score is above (MODEL.PSF.POST_PROCESSOR.MASK_THRESHOLD).
    """
    things = [matched.queries for matched in assignments.masks]
    stuff = [target.stuff_classes for target in targets]
    return MaskHealth(
        _count(predictions.things, things, mask_threshold), _count(predictions.stuff, stuff, mask_threshold)
    )


def _count(decoded: DecodedMasks, queries: list[Tensor], mask_threshold: float) -> HeadCounts | None:
    """Counts over the queries of each image, (M_b,) indices."""
    num_queries = sum(map(len, queries))
    if not decoded.mask_scores or not num_queries:
        return None
    above_zero, above_threshold = [], []
    for scores in decoded.mask_scores:
        matched = torch.cat([image[indices] for image, indices in zip(scores, queries, strict=True)])
        above_zero.append(torch.count_nonzero(matched > 0))
        above_threshold.append(torch.count_nonzero(matched > mask_threshold))
    height, width = decoded.mask_scores[0].shape[-2:]
    return HeadCounts(torch.stack(above_zero), torch.stack(above_threshold), num_queries * height * width)
