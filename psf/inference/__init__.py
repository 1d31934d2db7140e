"""Pure functions from masks and classes to a panoptic map, instances and semantic scores."""

from psf.inference.candidates import (
    CandidateThresholds,
    ImageGeometry,
    MergingThresholds,
    ScoredMasks,
    best_class,
    choose_things,
    join_candidates,
    per_candidate,
    resize_masks,
    score_masks,
    stuff_candidates,
    thing_candidates,
    top_pairs,
    upper_bound,
)
from psf.inference.mask_wise_merging import mask_wise_merging, paint_masks
from psf.inference.merge_panoptic import merge_panoptic
from psf.inference.pixel_argmax import class_times_mask, pixel_argmax
from psf.inference.post_processor import (
    POST_PROCESSOR_REGISTRY,
    ClassTimesMask,
    MaskWiseMerging,
    PixelArgmax,
    PostProcessor,
    ScoredCandidates,
    build_post_processor,
)
from psf.inference.rejections import KEPT, CandidateOutcomes, RejectionSummary, explain_rejections, summarise_rejections
from psf.inference.results import (
    InstanceSettings,
    mask_nms,
    panoptic_result,
    semantic_classes,
    semantic_result,
    semantic_scores,
)
from psf.inference.tiles import ScoredTile, Tile, fuse_tiles, tile_grid
from psf.inference.views import ScoredView, fuse_views, on_common_grid

__all__ = [
    "KEPT",
    "POST_PROCESSOR_REGISTRY",
    "CandidateOutcomes",
    "CandidateThresholds",
    "ClassTimesMask",
    "ImageGeometry",
    "InstanceSettings",
    "MaskWiseMerging",
    "MergingThresholds",
    "PixelArgmax",
    "PostProcessor",
    "RejectionSummary",
    "ScoredCandidates",
    "ScoredMasks",
    "ScoredTile",
    "ScoredView",
    "Tile",
    "best_class",
    "build_post_processor",
    "choose_things",
    "class_times_mask",
    "explain_rejections",
    "fuse_tiles",
    "fuse_views",
    "join_candidates",
    "mask_nms",
    "mask_wise_merging",
    "merge_panoptic",
    "on_common_grid",
    "paint_masks",
    "panoptic_result",
    "per_candidate",
    "pixel_argmax",
    "resize_masks",
    "score_masks",
    "semantic_classes",
    "semantic_result",
    "semantic_scores",
    "stuff_candidates",
    "summarise_rejections",
    "thing_candidates",
    "tile_grid",
    "top_pairs",
    "upper_bound",
]
