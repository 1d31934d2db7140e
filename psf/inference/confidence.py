"""How much a candidate mask is to be believed (section 3.5)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from psf.inference.resizing import Frame, resize_in_chunks
from psf.precision import at_least_float32
from psf.predictions import Candidates

__all__ = [
    "CandidateThresholds",
    "MergingThresholds",
    "ScoredMasks",
    "mask_confidence",
    "per_candidate",
    "score_masks",
    "upper_bound",
]

ROUNDING = 1 + 1e-5  # more than float32 can add


class MergingThresholds(NamedTuple):
    """The four numbers of Algorithm 1, for one kind of segments."""

    alpha: float  # exponent of the class probability
    beta: float  # exponent of the mean mask score
    t_cnf: float  # less confidence: discarded
    t_keep: float  # smaller share of the mask still free: discarded


class CandidateThresholds(NamedTuple):
    """The same for N candidates, each with the numbers of its kind; (N,) float64 each."""

    alpha: Tensor
    beta: Tensor
    t_cnf: Tensor
    t_keep: Tensor

    def select(self, index: Tensor) -> CandidateThresholds:
        """Those that `index` (bool mask or positions) picks."""
        return CandidateThresholds(*(x[index] for x in self))


class ScoredMasks(NamedTuple):
    """Candidates at output size."""

    masks: Tensor  # (N, H, W) bool, mask score above the threshold
    area: Tensor  # (N,) pixels
    confidence: Tensor  # (N,) s = p^alpha * mean(m over the mask)^beta; 0 for an empty mask


def per_candidate(is_thing: Tensor, things: MergingThresholds, stuff: MergingThresholds) -> CandidateThresholds:
    """Give each candidate the numbers of its kind; in float64, so that a share of exactly t_keep is enough."""
    values = torch.tensor([stuff, things], dtype=torch.float64, device=is_thing.device)
    return CandidateThresholds(*values[is_thing.long()].unbind(1))


def mask_confidence(
    class_scores: Tensor, score_sum: Tensor, area: Tensor, alpha: Tensor, beta: Tensor, extra_pixels: float
) -> Tensor:
    """s = p^alpha * (sum of m over the mask / (area + extra_pixels))^beta, (N,); 0 where the mask is empty.

    Differs from the released code: there `extra_pixels` is 1, which lowers the confidence of small masks; the paper
    has the mean, 0.
    """
    mean = score_sum / (area + extra_pixels).clamp(min=1)
    confidence = class_scores**alpha * mean**beta
    return torch.where(area > 0, confidence, 0.0).to(score_sum.dtype)


def upper_bound(candidates: Candidates, thresholds: CandidateThresholds, mask_threshold: float) -> Tensor:
    """(N,) no less than the confidence can become; 0 where the mask must be empty.

    No mean exceeds the highest score, and interpolating does not raise that one but by rounding.
    """
    highest = at_least_float32(candidates.mask_scores.flatten(1).amax(1)) * ROUNDING
    bound = candidates.class_scores**thresholds.alpha * highest**thresholds.beta * ROUNDING
    return torch.where(highest > mask_threshold, bound, 0.0)


def score_masks(
    candidates: Candidates,
    frame: Frame,
    thresholds: CandidateThresholds,
    *,
    mask_threshold: float,
    extra_pixels: float,
) -> ScoredMasks:
    """Resize each candidate to the output, make it binary, and say how much it is to be believed.

    Args:
        candidates: N of them.
        frame: from which size to which.
        thresholds: `per_candidate` ones, for their alpha and beta.
        mask_threshold: a pixel belongs to the mask where its score is above.
        extra_pixels: see `mask_confidence`.
    """
    masks = torch.empty(
        len(candidates.mask_scores), *frame.output_size, dtype=torch.bool, device=thresholds.alpha.device
    )
    areas, sums, start = [], [], 0
    for scores in resize_in_chunks(candidates.mask_scores, frame):
        kept = F.threshold(scores, mask_threshold, 0.0, inplace=True)
        masks[start : start + len(kept)] = kept > 0
        start += len(kept)
        areas.append(kept.sign().sum(2).long().sum(1))  # twice as fast on a CPU as counting bools
        sums.append(kept.sum((1, 2)))
    area, score_sum = torch.cat(areas), torch.cat(sums)
    confidence = mask_confidence(
        candidates.class_scores,
        score_sum,
        area,
        thresholds.alpha,
        thresholds.beta,
        extra_pixels,
    )
    return ScoredMasks(masks, area, confidence)
