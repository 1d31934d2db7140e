"""The three ways of making a panoptic map, by their names in MODEL.PSF.POST_PROCESSOR.NAME."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from torch import Tensor

from psf.inference import Frame, ScoredMasks, class_times_mask, mask_wise_merging, pixel_argmax, upper_bound
from psf.post_processing.base import PostProcessor, ScoredCandidates
from psf.predictions import Candidates, PanopticSegmentation
from psf.registry import POST_PROCESSOR_REGISTRY

__all__ = ["ClassTimesMask", "MaskWiseMerging", "PixelArgmax", "build_post_processor"]


@POST_PROCESSOR_REGISTRY.register()
class MaskWiseMerging(PostProcessor):
    """The paper's way (section 3.5, Algorithm 1): whole masks, in order of confidence."""

    def panoptic_rows(self, candidates: Candidates) -> Tensor:
        """Those that can reach T_CNF; the others are discarded whatever their masks look like at full size."""
        thresholds = self._thresholds(candidates)
        return upper_bound(candidates, thresholds, self.mask_threshold) >= thresholds.t_cnf

    def is_kept(self, candidates: Candidates, confidence: Tensor) -> Tensor:
        return confidence >= self._thresholds(candidates).t_cnf

    def panoptic(
        self, candidates: Candidates, frame: Frame, scored: ScoredCandidates | None = None
    ) -> PanopticSegmentation:
        positions, chosen, masks = scored or self.score(candidates, self.panoptic_rows(candidates), frame)
        thresholds = self._thresholds(chosen)
        merged = mask_wise_merging(masks.confidence, masks.masks, masks.area, thresholds.t_cnf, thresholds.t_keep)
        originals = positions.tolist()
        return merged._replace(segments=[s._replace(candidate=originals[s.candidate]) for s in merged.segments])


class _PixelWise(PostProcessor):
    def panoptic_rows(self, candidates: Candidates) -> Tensor:
        return torch.zeros_like(candidates.is_thing)  # pixels are compared, not masks

    def is_kept(self, candidates: Candidates, confidence: Tensor) -> Tensor:
        return candidates.class_scores >= self._thresholds(candidates).t_cnf

    def decisive_confidence(self, candidates: Candidates, confidence: Tensor) -> Tensor:
        return candidates.class_scores


@POST_PROCESSOR_REGISTRY.register()
class PixelArgmax(_PixelWise):
    """DETR's way (table 7, "p"): T_CNF is the least class probability, the highest mask score takes the pixel."""

    last_obstacle = "higher_scores"

    def has_mask(self, masks: ScoredMasks) -> Tensor:
        return torch.ones_like(masks.area, dtype=torch.bool)  # scores are compared with one another, not thresholded

    def panoptic(
        self, candidates: Candidates, frame: Frame, scored: ScoredCandidates | None = None
    ) -> PanopticSegmentation:
        return pixel_argmax(candidates, frame, self._thresholds(candidates).t_cnf)


@POST_PROCESSOR_REGISTRY.register()
class ClassTimesMask(_PixelWise):
    """MaskFormer's heuristic (table 7, "p*"): T_CNF is the least class probability, the highest product wins."""

    def panoptic(
        self, candidates: Candidates, frame: Frame, scored: ScoredCandidates | None = None
    ) -> PanopticSegmentation:
        thresholds = self._thresholds(candidates)
        return class_times_mask(candidates, frame, thresholds.t_cnf, thresholds.t_keep, self.mask_threshold)


def build_post_processor(cfg: CfgNode) -> PostProcessor:
    """The post-processor that MODEL.PSF.POST_PROCESSOR.NAME names."""
    return POST_PROCESSOR_REGISTRY.get(cfg.MODEL.PSF.POST_PROCESSOR.NAME)(cfg)
