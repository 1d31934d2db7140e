"""The configured post-processors, and Detectron2's structures out of their results."""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import box_convert, masks_to_boxes

from psf.classes import PanopticClasses
from psf.inference import (
    CandidateThresholds,
    Frame,
    MergingThresholds,
    ScoredMasks,
    class_times_mask,
    mask_wise_merging,
    per_candidate,
    pixel_argmax,
    score_masks,
    semantic_scores,
    upper_bound,
)
from psf.predictions import Candidates, PanopticSegmentation
from psf.registry import POST_PROCESSOR_REGISTRY

__all__ = [
    "ClassTimesMask",
    "InstanceSettings",
    "MaskWiseMerging",
    "PixelArgmax",
    "PostProcessor",
    "build_post_processor",
    "panoptic_result",
    "semantic_result",
]


class InstanceSettings(NamedTuple):
    """Which instances are reported (MODEL.PSF.TEST.INSTANCE)."""

    boxes: str  # "mask": tight around it; "location_decoder": as predicted
    score_thresh: float  # least confidence
    max_per_image: int


class PostProcessor(abc.ABC):
    """What the three ways of making a panoptic map have in common: the keys, and the instance results.

    Args:
        things: exponents and thresholds of things.
        stuff: those of stuff.
        mask_threshold: a pixel belongs to a mask where its score is above.
        extra_pixels: added to the pixel count in the mean mask score.
        instance: which instances are reported.
    """

    @configurable
    def __init__(
        self,
        *,
        things: MergingThresholds,
        stuff: MergingThresholds,
        mask_threshold: float,
        extra_pixels: float,
        instance: InstanceSettings,
    ):
        self.things, self.stuff = things, stuff
        self.mask_threshold, self.extra_pixels, self.instance = mask_threshold, extra_pixels, instance

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node, instance = cfg.MODEL.PSF.POST_PROCESSOR, cfg.MODEL.PSF.TEST.INSTANCE
        things, stuff = (
            MergingThresholds(alpha=kind.ALPHA, beta=kind.BETA, t_cnf=kind.T_CNF, t_keep=kind.T_KEEP)
            for kind in (node.THINGS, node.STUFF)
        )
        return {
            "things": things,
            "stuff": stuff,
            "mask_threshold": node.MASK_THRESHOLD,
            "extra_pixels": node.EXTRA_PIXELS,
            "instance": InstanceSettings(instance.BOXES, instance.SCORE_THRESH, instance.MAX_PER_IMAGE),
        }

    @abc.abstractmethod
    def panoptic(self, candidates: Candidates, frame: Frame) -> PanopticSegmentation:
        """Decide for each pixel of the output which candidate it belongs to, if any."""

    def instances(self, candidates: Candidates, classes: PanopticClasses, frame: Frame) -> Instances:
        """The thing candidates, best first, by the confidence that mask-wise merging sorts them by.

        Returns:
            Detectron2's Instances at output size: pred_masks (bool), pred_boxes (pixels), scores, pred_classes
            (contiguous ids). Masks may overlap; empty ones are left out.
        """
        things = self._most_confident(candidates.select(candidates.is_thing))
        thresholds = per_candidate(things.is_thing, self.things, self.stuff)
        possible = upper_bound(things, thresholds, self.mask_threshold) > max(self.instance.score_thresh, 0.0)
        things, thresholds = things.select(possible), thresholds.select(possible)
        scored = self._score(things, thresholds, frame)
        order = scored.confidence.argsort(descending=True, stable=True)
        order = order[(scored.area > 0)[order] & (scored.confidence >= self.instance.score_thresh)[order]]
        result = Instances(frame.output_size)
        result.pred_masks = scored.masks[order]
        result.scores = scored.confidence[order]
        result.pred_classes = order.new_tensor(classes.thing_ids)[things.class_indices[order]]
        result.pred_boxes = Boxes(self._boxes(things, scored.masks, frame)[order])
        return result

    def _most_confident(self, things: Candidates) -> Candidates:
        """The `max_per_image` best, judged by the masks as they were made: no others need be resized."""
        size = (things.mask_scores.shape[1], things.mask_scores.shape[2])
        thresholds = per_candidate(things.is_thing, self.things, self.stuff)
        confidence = self._score(things, thresholds, Frame(size, size, size)).confidence
        return things.select(confidence.argsort(descending=True, stable=True)[: self.instance.max_per_image])

    def _score(self, candidates: Candidates, thresholds: CandidateThresholds, frame: Frame) -> ScoredMasks:
        return score_masks(
            candidates, frame, thresholds, mask_threshold=self.mask_threshold, extra_pixels=self.extra_pixels
        )

    def _boxes(self, things: Candidates, masks: Tensor, frame: Frame) -> Tensor:
        """(N, 4) x0 y0 x1 y1 in output pixels."""
        height, width = frame.output_size
        if self.instance.boxes == "location_decoder" and len(masks):  # a model without things has no boxes at all
            assert things.boxes_cxcywh_norm is not None
            boxes = box_convert(things.boxes_cxcywh_norm, "cxcywh", "xyxy").clamp(0, 1)
            return boxes * boxes.new_tensor([width, height, width, height])
        boxes = torch.zeros(len(masks), 4, device=masks.device)
        filled = masks.flatten(1).any(1)
        boxes[filled] = masks_to_boxes(masks[filled]).float()
        boxes[filled, 2:] += 1
        return boxes


@POST_PROCESSOR_REGISTRY.register()
class MaskWiseMerging(PostProcessor):
    """The paper's way (section 3.5, Algorithm 1): whole masks, in order of confidence."""

    def panoptic(self, candidates: Candidates, frame: Frame) -> PanopticSegmentation:
        thresholds = per_candidate(candidates.is_thing, self.things, self.stuff)
        possible = upper_bound(candidates, thresholds, self.mask_threshold) >= thresholds.t_cnf
        kept = possible.nonzero()[:, 0]  # the others are discarded whatever their masks look like at full size
        chosen, thresholds = candidates.select(kept), thresholds.select(kept)
        scored = self._score(chosen, thresholds, frame)
        merged = mask_wise_merging(scored.confidence, scored.masks, scored.area, thresholds.t_cnf, thresholds.t_keep)
        originals = kept.tolist()
        return merged._replace(segments=[s._replace(candidate=originals[s.candidate]) for s in merged.segments])


@POST_PROCESSOR_REGISTRY.register()
class PixelArgmax(PostProcessor):
    """DETR's way (table 7, "p"): T_CNF is the least class probability, the highest mask score takes the pixel."""

    def panoptic(self, candidates: Candidates, frame: Frame) -> PanopticSegmentation:
        return pixel_argmax(candidates, frame, per_candidate(candidates.is_thing, self.things, self.stuff).t_cnf)


@POST_PROCESSOR_REGISTRY.register()
class ClassTimesMask(PostProcessor):
    """MaskFormer's heuristic (table 7, "p*"): T_CNF is the least class probability, the highest product wins."""

    def panoptic(self, candidates: Candidates, frame: Frame) -> PanopticSegmentation:
        thresholds = per_candidate(candidates.is_thing, self.things, self.stuff)
        return class_times_mask(candidates, frame, thresholds.t_cnf, thresholds.t_keep, self.mask_threshold)


def panoptic_result(
    segmentation: PanopticSegmentation, candidates: Candidates, classes: PanopticClasses
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Detectron2's `panoptic_seg`: the (H, W) int32 map and segments_info in plain numbers."""
    is_thing, indices = candidates.is_thing.tolist(), candidates.class_indices.tolist()
    segments_info = []
    for segment in segmentation.segments:
        ids = classes.thing_ids if is_thing[segment.candidate] else classes.stuff_ids
        segments_info.append(
            {
                "id": segment.id,
                "category_id": ids[indices[segment.candidate]],
                "isthing": is_thing[segment.candidate],
                "score": segment.score,
                "area": segment.area,
            }
        )
    return segmentation.segment_map, segments_info


def semantic_result(candidates: Candidates, classes: PanopticClasses, frame: Frame) -> Tensor:
    """Detectron2's `sem_seg`: (K, H, W) scores; K and the channels as the data set's contiguous ids have them."""
    things, stuff, num_channels = classes.semantic_channels
    channels = [
        (things if is_thing else stuff)[index]
        for is_thing, index in zip(candidates.is_thing.tolist(), candidates.class_indices.tolist(), strict=True)
    ]
    return semantic_scores(candidates, candidates.class_indices.new_tensor(channels), num_channels, frame)


def build_post_processor(cfg: CfgNode) -> PostProcessor:
    """The post-processor that MODEL.PSF.POST_PROCESSOR.NAME names."""
    return POST_PROCESSOR_REGISTRY.get(cfg.MODEL.PSF.POST_PROCESSOR.NAME)(cfg)
