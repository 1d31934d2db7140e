"""The registered, configured post-processors: candidates -> Detectron2's results."""

from psf.post_processing.base import PostProcessor, ScoredCandidates
from psf.post_processing.instance_settings import InstanceSettings
from psf.post_processing.kinds import ClassTimesMask, MaskWiseMerging, PixelArgmax, build_post_processor
from psf.post_processing.results import panoptic_result, semantic_result

__all__ = [
    "ClassTimesMask",
    "InstanceSettings",
    "MaskWiseMerging",
    "PixelArgmax",
    "PostProcessor",
    "ScoredCandidates",
    "build_post_processor",
    "panoptic_result",
    "semantic_result",
]
