"""Segment images from Python: a model file, a predictor, and typed results."""

from psf.prediction.explanation import ExplainedCandidate, Explanation
from psf.prediction.model_file import ModelFile, find_model_file, read_config, read_model_file
from psf.prediction.predictor import Predictor, load
from psf.prediction.result import Instance, PanopticResult, PanopticSegment

__all__ = [
    "ExplainedCandidate",
    "Explanation",
    "Instance",
    "ModelFile",
    "PanopticResult",
    "PanopticSegment",
    "Predictor",
    "find_model_file",
    "load",
    "read_config",
    "read_model_file",
]
