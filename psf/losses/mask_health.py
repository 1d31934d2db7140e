"""How alive the masks of each mask head are: counts that stay on the device until someone reads them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from psf.losses.matching import ThingAssignments
from psf.predictions import DecodedMasks, PanopticTargets, TrainingPredictions

__all__ = ["HeadCounts", "MaskHealth", "measure_mask_health"]


class HeadCounts(NamedTuple):
    """Of the mask heads of one decoder, over the masks that answer for a ground truth in one batch."""

    above_zero: Tensor  # (heads,) int64 pixels with a score above 0; the decoder's layers in order, then its tail
    above_threshold: Tensor  # (heads,) int64 pixels with a score above the mask threshold
    num_pixels: int  # of all these masks at the finest level, padding included


class MaskHealth(NamedTuple):
    """Counts of one training batch; None where the model has no such decoder, or the batch nothing for it to find."""

    things: HeadCounts | None  # with joint queries those of stuff, too
    stuff: HeadCounts | None


@torch.no_grad()
def measure_mask_health(
    predictions: TrainingPredictions,
    assignments: ThingAssignments,
    targets: list[PanopticTargets],
    mask_threshold: float,
) -> MaskHealth:
    """Count the pixels that the matched things and the present stuff classes have in each head's masks.

    A ReLU head without a pixel above 0 gets no gradient any more. Nothing here waits for the device.

    Args:
        predictions: of a batch, in training.
        assignments: which thing queries are matched.
        targets: one per image.
        mask_threshold: a pixel belongs to a mask where its score is above (MODEL.PSF.POST_PROCESSOR.MASK_THRESHOLD).
    """
    things = [pairs.queries for pairs in assignments.masks]
    stuff = [target.stuff_classes for target in targets]
    return MaskHealth(
        _count(predictions.things, things, mask_threshold), _count(predictions.stuff, stuff, mask_threshold)
    )


def _count(decoded: DecodedMasks, queries: list[Tensor], mask_threshold: float) -> HeadCounts | None:
    """Of the (M_b,) queries of each image."""
    num_queries = sum(map(len, queries))
    if not decoded.mask_scores or not num_queries:
        return None
    above_zero, above_threshold = [], []
    for scores in decoded.mask_scores:
        matched = torch.cat([image[index] for image, index in zip(scores, queries, strict=True)])
        above_zero.append(torch.count_nonzero(matched > 0))
        above_threshold.append(torch.count_nonzero(matched > mask_threshold))
    height, width = decoded.mask_scores[0].shape[-2:]
    return HeadCounts(torch.stack(above_zero), torch.stack(above_threshold), num_queries * height * width)
