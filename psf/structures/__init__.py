"""Data structures that the parts of psf exchange: predictions, targets, classes and boxes."""

from psf.structures.class_list import ClassEntry, list_classes, metadata_of_classes, read_classes
from psf.structures.targets import all_as_things, panoptic_targets, stuff_as_things
from psf.structures.types import (
    MASK_FEATURE_DIM,
    Candidates,
    CategoryIds,
    DecodedMasks,
    FeatureTokens,
    LocatedQueries,
    LocationLayer,
    MaskFeatures,
    PanopticClasses,
    PanopticSegmentation,
    PanopticTargets,
    Segment,
    TrainingPredictions,
    tight_boxes,
)

__all__ = [
    "MASK_FEATURE_DIM",
    "Candidates",
    "CategoryIds",
    "ClassEntry",
    "DecodedMasks",
    "FeatureTokens",
    "LocatedQueries",
    "LocationLayer",
    "MaskFeatures",
    "PanopticClasses",
    "PanopticSegmentation",
    "PanopticTargets",
    "Segment",
    "TrainingPredictions",
    "all_as_things",
    "list_classes",
    "metadata_of_classes",
    "panoptic_targets",
    "read_classes",
    "stuff_as_things",
    "tight_boxes",
]
