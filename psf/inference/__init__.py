"""From masks and classes to a panoptic map, instances and semantic scores: pure functions."""

from psf.inference.boxes import tight_boxes
from psf.inference.candidates import (
    best_class,
    choose_things,
    join_candidates,
    stuff_candidates,
    thing_candidates,
    top_pairs,
)
from psf.inference.confidence import (
    CandidateThresholds,
    MergingThresholds,
    ScoredMasks,
    per_candidate,
    score_masks,
    upper_bound,
)
from psf.inference.mask_nms import mask_nms
from psf.inference.mask_wise_merging import mask_wise_merging
from psf.inference.pixel_argmax import class_times_mask, pixel_argmax
from psf.inference.rejections import (
    KEPT,
    CandidateOutcomes,
    RejectionSummary,
    explain_rejections,
    summarise_rejections,
)
from psf.inference.resizing import Frame, resize_masks
from psf.inference.semantic import semantic_scores
from psf.inference.tile_fusion import ScoredTile, Tile, fuse_tiles, tile_grid
from psf.inference.view_fusion import ScoredView, fuse_views, on_common_grid

__all__ = [
    "KEPT",
    "CandidateOutcomes",
    "CandidateThresholds",
    "Frame",
    "MergingThresholds",
    "RejectionSummary",
    "ScoredMasks",
    "ScoredTile",
    "ScoredView",
    "Tile",
    "best_class",
    "choose_things",
    "class_times_mask",
    "explain_rejections",
    "fuse_tiles",
    "fuse_views",
    "join_candidates",
    "mask_nms",
    "mask_wise_merging",
    "on_common_grid",
    "per_candidate",
    "pixel_argmax",
    "resize_masks",
    "score_masks",
    "semantic_scores",
    "stuff_candidates",
    "summarise_rejections",
    "thing_candidates",
    "tight_boxes",
    "tile_grid",
    "top_pairs",
    "upper_bound",
]
