"""Explain why candidates are not in a result, for example why a result is empty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from psf.structures import Candidates

__all__ = ["KEPT", "CandidateOutcomes", "RejectionSummary", "explain_rejections", "summarise_rejections"]

KEPT = "kept"
EMPTY_MASK = "empty_mask"


class CandidateOutcomes(NamedTuple):
    """Outcome of each of the N candidates of one image."""

    is_thing: Tensor  # (N,) bool
    class_scores: Tensor  # (N,) probability of the class
    highest_mask_scores: Tensor  # (N,) highest mask score before resizing
    confidence: Tensor  # (N,) value that is compared with the threshold
    reasons: list[str]  # N times "kept", "empty_mask", or the name of the key that rejected the candidate


class RejectionSummary(NamedTuple):
    """Outcomes over several images; scores are 0 if there is no candidate."""

    num_images: int
    num_candidates: int
    largest_confidence: float
    largest_class_score: float
    largest_mask_score: float
    counts: dict[str, int]  # reason -> number of candidates, in the order of the tests


def explain_rejections(
    candidates: Candidates,
    *,
    confidence: Tensor,
    has_mask: Tensor,
    is_confident: Tensor,
    is_kept: Tensor,
    confidence_key: str,
    last_key: str,
) -> CandidateOutcomes:
    """The first test that each candidate of an image failed.

    Args:
        candidates: N of them.
        confidence: (N,) values that are compared with the threshold.
        has_mask: (N,) bool, whether any pixel of the output is in the mask.
        is_confident: (N,) bool, whether the confidence reaches the threshold.
        is_kept: (N,) bool, whether the candidate is in the result.
        confidence_key: the threshold's key, for example "T_CNF".
        last_key: the key that rejects candidates that have a mask and are confident, for example "T_KEEP".
    """
    reasons = []
    for kept, mask, confident in zip(is_kept.tolist(), has_mask.tolist(), is_confident.tolist(), strict=True):
        if kept:
            reasons.append(KEPT)
        elif not mask:
            reasons.append(EMPTY_MASK)
        else:
            reasons.append(last_key if confident else confidence_key)
    highest = candidates.mask_scores.flatten(1).amax(1) if len(reasons) else confidence
    return CandidateOutcomes(candidates.is_thing, candidates.class_scores, highest, confidence, reasons)


def summarise_rejections(images: Sequence[CandidateOutcomes], is_thing: bool) -> RejectionSummary:
    """Count the outcomes of the things, or of the stuff, of several images."""
    counts: dict[str, int] = {}
    confidence = class_score = mask_score = 0.0
    for one in images:
        rows = one.is_thing == is_thing
        for reason, is_counted in zip(one.reasons, rows.tolist(), strict=True):
            if is_counted:
                counts[reason] = counts.get(reason, 0) + 1
        if rows.any():
            confidence = max(confidence, one.confidence[rows].max().item())
            class_score = max(class_score, one.class_scores[rows].max().item())
            mask_score = max(mask_score, one.highest_mask_scores[rows].max().item())
    return RejectionSummary(len(images), sum(counts.values()), confidence, class_score, mask_score, counts)
