"""What the model is trained on: who answers for what, and how well."""

from psf.losses.criterion import PanopticCriterion
from psf.losses.mask_health import HeadCounts, MaskHealth, measure_mask_health
from psf.losses.matcher import Assignment, HungarianMatcher
from psf.losses.matching import PerLayerMatching, SharedMatching, ThingAssignments

__all__ = [
    "Assignment",
    "HeadCounts",
    "HungarianMatcher",
    "MaskHealth",
    "PanopticCriterion",
    "PerLayerMatching",
    "SharedMatching",
    "ThingAssignments",
    "measure_mask_health",
]
