"""Target assignment and the training loss."""

from psf.losses.assignment import (
    Assigner,
    Assignment,
    HungarianMatcher,
    PerLayerAssigner,
    SharedAssigner,
    ThingAssignments,
)
from psf.losses.criterion import HeadCounts, MaskHealth, PanopticCriterion, measure_mask_health

__all__ = [
    "Assigner",
    "Assignment",
    "HeadCounts",
    "HungarianMatcher",
    "MaskHealth",
    "PanopticCriterion",
    "PerLayerAssigner",
    "SharedAssigner",
    "ThingAssignments",
    "measure_mask_health",
]
