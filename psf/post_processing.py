"""The configured post-processors, and Detectron2's structures out of their results."""

from __future__ import annotations

import abc
import math
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import box_convert

from psf.classes import PanopticClasses
from psf.inference import (
    CandidateThresholds,
    Frame,
    MergingThresholds,
    ScoredMasks,
    class_times_mask,
    mask_nms,
    mask_wise_merging,
    per_candidate,
    pixel_argmax,
    score_masks,
    semantic_scores,
    tight_boxes,
    upper_bound,
)
from psf.joint_queries import join_stuff_segments
from psf.predictions import Candidates, PanopticSegmentation
from psf.registry import POST_PROCESSOR_REGISTRY

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


class InstanceSettings(NamedTuple):
    """Which instances are reported (MODEL.PSF.TEST.INSTANCE)."""

    boxes: str  # "mask": tight around it; "location_decoder": as predicted
    score_thresh: float  # least confidence
    max_per_image: int
    nms_thresh: float  # mask IoU above which the lesser of two instances of a class is left out; 1: none


class ScoredCandidates(NamedTuple):
    """Some of the candidates of an image, at output size."""

    positions: Tensor  # (M,) among all candidates, ascending
    candidates: Candidates  # M of them
    masks: ScoredMasks  # theirs


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
        node = cfg.MODEL.PSF.POST_PROCESSOR
        things, stuff = (
            MergingThresholds(alpha=kind.ALPHA, beta=kind.BETA, t_cnf=kind.T_CNF, t_keep=kind.T_KEEP)
            for kind in (node.THINGS, node.STUFF)
        )
        return {
            "things": things,
            "stuff": stuff,
            "mask_threshold": node.MASK_THRESHOLD,
            "extra_pixels": node.EXTRA_PIXELS,
            "instance": _instance_settings(cfg),
        }

    def results(
        self, candidates: Candidates, classes: PanopticClasses, frame: Frame, *, panoptic: bool, instance: bool
    ) -> dict[str, Any]:
        """Detectron2's `panoptic_seg` and `instances` of one image, as wanted; a mask is resized once for both.

        Args:
            candidates: of the image.
            classes: contiguous ids of the classes.
            frame: from which size to which.
            panoptic: give `panoptic_seg`.
            instance: give `instances`.
        """
        rows = torch.zeros_like(candidates.is_thing)
        if panoptic:
            rows |= self.panoptic_rows(candidates)
        if instance:
            rows |= self.instance_rows(candidates)
        scored = self.score(candidates, rows, frame)
        results: dict[str, Any] = {}
        if panoptic:
            results["panoptic_seg"] = panoptic_result(self.panoptic(candidates, frame, scored), candidates, classes)
        if instance:
            results["instances"] = self.instances(candidates, classes, frame, scored)
        return results

    @abc.abstractmethod
    def panoptic_rows(self, candidates: Candidates) -> Tensor:
        """(N,) bool, the candidates that `panoptic` needs the score of."""

    @abc.abstractmethod
    def panoptic(
        self, candidates: Candidates, frame: Frame, scored: ScoredCandidates | None = None
    ) -> PanopticSegmentation:
        """Decide for each pixel of the output which candidate it belongs to, if any.

        Args:
            candidates: of one image.
            frame: from which size to which.
            scored: `panoptic_rows` and maybe more, if they have been scored already.
        """

    def instance_rows(self, candidates: Candidates) -> Tensor:
        """(N,) bool, the candidates that `instances` needs the score of.

        The `max_per_image` most confident things, judged by the masks as they were made, without those that must be
        empty or cannot reach `score_thresh`.
        """
        thresholds = self._thresholds(candidates)
        possible = upper_bound(candidates, thresholds, self.mask_threshold) > max(self.instance.score_thresh, 0.0)
        size = (candidates.mask_scores.shape[1], candidates.mask_scores.shape[2])
        confidence = self._score_masks(candidates, thresholds, Frame(size, size, size)).confidence
        confidence = confidence.masked_fill(~candidates.is_thing, -1.0)
        best = confidence.argsort(descending=True, stable=True)[: self.instance.max_per_image]
        return possible & candidates.is_thing & torch.zeros_like(possible).index_fill(0, best, True)

    def instances(
        self, candidates: Candidates, classes: PanopticClasses, frame: Frame, scored: ScoredCandidates | None = None
    ) -> Instances:
        """The thing candidates, best first, by the confidence that mask-wise merging sorts them by.

        Args:
            candidates: of one image.
            classes: contiguous ids of the classes.
            frame: from which size to which.
            scored: `instance_rows` and maybe more, if they have been scored already.

        Returns:
            Detectron2's Instances at output size: pred_masks (bool), pred_boxes (pixels), scores, pred_classes
            (contiguous ids). Masks may overlap, by no more than `nms_thresh` within a class; empty ones are left out.
        """
        rows = self.instance_rows(candidates)
        positions, things, masks = scored or self.score(candidates, rows, frame)
        wanted = rows[positions] & (masks.area > 0) & (masks.confidence >= self.instance.score_thresh)
        order = masks.confidence.argsort(descending=True, stable=True)
        order = order[wanted[order]]
        if self.instance.nms_thresh < 1:
            order = order[mask_nms(masks.masks[order], things.class_indices[order], self.instance.nms_thresh)]
        result = Instances(frame.output_size)
        result.pred_masks = masks.masks[order]
        result.scores = masks.confidence[order]
        result.pred_classes = order.new_tensor(classes.thing_ids)[things.class_indices[order]]
        result.pred_boxes = Boxes(self._boxes(things.select(order), result.pred_masks, frame))
        return result

    def score(self, candidates: Candidates, rows: Tensor, frame: Frame) -> ScoredCandidates:
        """Resize the candidates of `rows`, (N,) bool, to the output, and say how much each is to be believed."""
        positions = rows.nonzero()[:, 0]
        chosen = candidates.select(positions)
        return ScoredCandidates(positions, chosen, self._score_masks(chosen, self._thresholds(chosen), frame))

    def _thresholds(self, candidates: Candidates) -> CandidateThresholds:
        return per_candidate(candidates.is_thing, self.things, self.stuff)

    def _score_masks(self, candidates: Candidates, thresholds: CandidateThresholds, frame: Frame) -> ScoredMasks:
        return score_masks(
            candidates, frame, thresholds, mask_threshold=self.mask_threshold, extra_pixels=self.extra_pixels
        )

    def _boxes(self, things: Candidates, masks: Tensor, frame: Frame) -> Tensor:
        """(N, 4) x0 y0 x1 y1 in output pixels."""
        if self.instance.boxes == "mask" or not len(masks):  # a model without things has no boxes at all
            return tight_boxes(masks)[0].float()
        assert things.boxes_cxcywh_norm is not None
        height, width = frame.output_size
        boxes = box_convert(things.boxes_cxcywh_norm, "cxcywh", "xyxy").clamp(0, 1)
        return boxes * boxes.new_tensor([width, height, width, height])


@POST_PROCESSOR_REGISTRY.register()
class MaskWiseMerging(PostProcessor):
    """The paper's way (section 3.5, Algorithm 1): whole masks, in order of confidence."""

    def panoptic_rows(self, candidates: Candidates) -> Tensor:
        """Those that can reach T_CNF; the others are discarded whatever their masks look like at full size."""
        thresholds = self._thresholds(candidates)
        return upper_bound(candidates, thresholds, self.mask_threshold) >= thresholds.t_cnf

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


@POST_PROCESSOR_REGISTRY.register()
class PixelArgmax(_PixelWise):
    """DETR's way (table 7, "p"): T_CNF is the least class probability, the highest mask score takes the pixel."""

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


def panoptic_result(
    segmentation: PanopticSegmentation, candidates: Candidates, classes: PanopticClasses
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Detectron2's `panoptic_seg`: the (H, W) int32 map and segments_info in plain numbers.

    Stuff has one segment a class, also where several candidates are of that class.
    """
    segmentation = join_stuff_segments(segmentation, candidates)
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


def _instance_settings(cfg: CfgNode) -> InstanceSettings:
    node, activation = cfg.MODEL.PSF.TEST.INSTANCE, cfg.MODEL.PSF.MASK_DECODER.MASK_ACTIVATION
    highest = math.inf if activation == "relu" else 1.0  # of the confidence
    if not 0 <= node.SCORE_THRESH <= highest:
        expected = "0 or more" if activation == "relu" else "a confidence from 0 to 1"
        raise ValueError(
            f"MODEL.PSF.TEST.INSTANCE.SCORE_THRESH is {node.SCORE_THRESH}: expected {expected}, as "
            f'MASK_DECODER.MASK_ACTIVATION is "{activation}"'
        )
    if node.MAX_PER_IMAGE < 1:
        raise ValueError(f"MODEL.PSF.TEST.INSTANCE.MAX_PER_IMAGE is {node.MAX_PER_IMAGE}: expected 1 or more")
    if not 0 <= node.NMS_THRESH <= 1:
        raise ValueError(
            f"MODEL.PSF.TEST.INSTANCE.NMS_THRESH is {node.NMS_THRESH}: expected an IoU from 0 to 1; 1 keeps all"
        )
    return InstanceSettings(node.BOXES, node.SCORE_THRESH, node.MAX_PER_IMAGE, node.NMS_THRESH)
