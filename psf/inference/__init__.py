"""From masks and classes to a panoptic map, instances and semantic scores: pure functions."""

from psf.inference.boxes import tight_boxes
from psf.inference.candidates import best_class, join_candidates, stuff_candidates, top_pairs
from psf.inference.confidence import (
    CandidateThresholds,
    MergingThresholds,
    ScoredMasks,
    per_candidate,
    score_masks,
    upper_bound,
)
from psf.inference.mask_wise_merging import mask_wise_merging
from psf.inference.pixel_argmax import class_times_mask, pixel_argmax
from psf.inference.resizing import Frame, resize_masks
from psf.inference.semantic import semantic_scores

__all__ = [
    "CandidateThresholds",
    "Frame",
    "MergingThresholds",
    "ScoredMasks",
    "best_class",
    "class_times_mask",
    "join_candidates",
    "mask_wise_merging",
    "per_candidate",
    "pixel_argmax",
    "resize_masks",
    "score_masks",
    "semantic_scores",
    "stuff_candidates",
    "tight_boxes",
    "top_pairs",
    "upper_bound",
]
