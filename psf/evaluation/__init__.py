"""Evaluation: panoptic quality, mIoU and AP from the panoptic ground truth, and panels of predictions."""

from psf.evaluation.background import BackgroundEvaluators
from psf.evaluation.ground_truth import ImageGroundTruth, PanopticGroundTruth, has_panoptic_gt
from psf.evaluation.instances import InstanceEvaluator, write_instance_json
from psf.evaluation.panels import PanelEvaluator, PanelRow, PanopticMap, draw_panel
from psf.evaluation.panoptic_evaluator import PanopticQualityEvaluator
from psf.evaluation.panoptic_quality import ClassQuality, PanopticQuality
from psf.evaluation.panoptic_writer import PanopticWriter
from psf.evaluation.per_class import write_per_class
from psf.evaluation.result_counter import ResultCounter
from psf.evaluation.segment_matching import match_segments, match_with_boundaries
from psf.evaluation.semantic import SemanticEvaluator

__all__ = [
    "BackgroundEvaluators",
    "ClassQuality",
    "ImageGroundTruth",
    "InstanceEvaluator",
    "PanelEvaluator",
    "PanelRow",
    "PanopticGroundTruth",
    "PanopticMap",
    "PanopticQuality",
    "PanopticQualityEvaluator",
    "PanopticWriter",
    "ResultCounter",
    "SemanticEvaluator",
    "draw_panel",
    "has_panoptic_gt",
    "match_segments",
    "match_with_boundaries",
    "write_instance_json",
    "write_per_class",
]
