"""What the model is trained on: who answers for what, and how well."""

from psf.losses.criterion import PanopticCriterion
from psf.losses.matcher import Assignment, HungarianMatcher
from psf.losses.matching import PerLayerMatching, SharedMatching, ThingAssignments

__all__ = [
    "Assignment",
    "HungarianMatcher",
    "PanopticCriterion",
    "PerLayerMatching",
    "SharedMatching",
    "ThingAssignments",
]
