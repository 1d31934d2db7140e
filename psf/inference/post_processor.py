"""Post-processors: from the candidates of an image to panoptic segmentation and instances (section 3.5, table 7)."""

from __future__ import annotations

import abc
import math
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import Instances
from detectron2.utils.registry import Registry
from torch import Tensor

from psf.errors import UserError
from psf.inference.candidates import (
    CandidateThresholds,
    ImageGeometry,
    MergingThresholds,
    ScoredMasks,
    as_integers,
    per_candidate,
    score_masks,
    upper_bound,
)
from psf.inference.mask_wise_merging import MaskNumbers, mask_wise_merging, merge_masks, paints_on_device
from psf.inference.pixel_argmax import class_times_mask, pixel_argmax
from psf.inference.rejections import CandidateOutcomes, explain_rejections
from psf.inference.results import InstanceSettings, instance_result, panoptic_result, suppress_masks
from psf.ops.transfer import download_arrays, upload_numbers
from psf.structures import Candidates, PanopticClasses, PanopticSegmentation, tight_boxes

__all__ = [
    "POST_PROCESSOR_REGISTRY",
    "ClassTimesMask",
    "MaskWiseMerging",
    "PixelArgmax",
    "PostProcessor",
    "ScoredCandidates",
    "build_post_processor",
]

POST_PROCESSOR_REGISTRY = Registry("PSF_POST_PROCESSOR")
POST_PROCESSOR_REGISTRY.__doc__ = (
    "Classes called as (cfg): candidates -> panoptic map, such as psf.inference.MaskWiseMerging."
)


class CandidateNumbers(NamedTuple):
    """What the host decides with: copies of small tensors, made in one transfer."""

    is_thing: np.ndarray  # (N,) of all candidates
    class_indices: np.ndarray  # (N,) of all candidates
    positions: np.ndarray  # (M,) of the scored ones among all candidates
    is_instance: np.ndarray  # (M,) bool, `PostProcessor.instance_rows` of the scored ones
    area: np.ndarray  # (M,)
    confidence: np.ndarray  # (M,)
    boxes: np.ndarray | None = None  # (M, 4) `tight_boxes`, where the device paints


class ScoredCandidates(NamedTuple):
    """Some of the candidates of an image, at output size."""

    positions: Tensor  # (M,) indices among all candidates, ascending
    candidates: Candidates  # M
    masks: ScoredMasks  # M
    numbers: CandidateNumbers | None = None  # their copies on the host, see `PostProcessor.results`


class PostProcessor(abc.ABC):
    """Base class: reads the keys, scores the candidates, and makes instances; subclasses assign the pixels.

    To write your own post-processor, register a subclass with POST_PROCESSOR_REGISTRY and name it in
    MODEL.PSF.POST_PROCESSOR.NAME; the registry calls it with (cfg). `psf.testing.check_post_processor` checks all this:

    * It implements `panoptic_rows`, `panoptic` and `is_kept`. It may override `last_obstacle`, `decisive_confidence`
      and `has_mask` (for `explain`), `instance_rows` and `instances`. psf calls `results` and `explain`.
    * `panoptic` returns a map (H, W) int32 at output size, and its segments. Their ids are 1, 2, ... in the order of
      the list, 0 in the map means no segment, `area` is the number of pixels in the map, at least 1, and `candidate` is
      the position of the candidate, whose class the segment gets. The score is a confidence, in [0, 1] if mask scores
      are.
    * `instances` returns the things, at most `instance.max_per_image`, with scores of at least `instance.score_thresh`,
      best first: pred_masks (N, H, W) bool, none empty; pred_boxes, tight around the masks if `instance.boxes` is
      "mask"; scores (N,) float32; pred_classes (N,) int64, contiguous ids of things.
    * It changes no candidate in place, and mask scores in padding change nothing. The same candidates give the same
      results. It handles images without things, without stuff, and without any candidate.
    * `explain` calls as many candidates "kept" as there are segments and instances.

    psf reads the attributes below, which `__init__` sets; a subclass with an `__init__` of its own calls this one, and
    uses the attributes instead of copies made when it was built. psf sets `things` and `stuff` (tuned thresholds; `psf
    predict --confidence-threshold`), and `instance` (score threshold of `psf predict`).

    Attributes:
        things, stuff: thresholds in force.
        configured: (things, stuff) of the config, which tuned ones replace.
        is_tuned, mask_threshold, extra_pixels, instance: the arguments.

    Args:
        things: exponents and thresholds of things.
        stuff: exponents and thresholds of stuff.
        mask_threshold: a pixel belongs to a mask where its score is above.
        extra_pixels: added to the pixel count in the mean mask score.
        instance: settings of the instance results.
        is_tuned: use the thresholds stored in the checkpoint (TUNE_IMAGES above 0), see `psf.engine.Checkpointer`.
    """

    last_obstacle: ClassVar[str] = "T_KEEP"  # rejects candidates that have a mask and reach T_CNF

    @configurable
    def __init__(
        self,
        *,
        things: MergingThresholds,
        stuff: MergingThresholds,
        mask_threshold: float,
        extra_pixels: float,
        instance: InstanceSettings,
        is_tuned: bool = False,
    ):
        self.things, self.stuff = things, stuff
        self.configured, self.is_tuned = (things, stuff), is_tuned
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
            "is_tuned": node.TUNE_IMAGES > 0,
        }

    def results(
        self,
        candidates: Candidates,
        classes: PanopticClasses,
        geometry: ImageGeometry,
        *,
        panoptic: bool,
        instance: bool,
    ) -> dict[str, Any]:
        """Detectron2's `panoptic_seg` and `instances` of one image; each mask is resized once for both.

        The host waits for a device at most four times: for the candidates to score, for their numbers, for the areas of
        the segments, and for the overlaps of instances if NMS_THRESH is below 1.

        Args:
            candidates: of the image.
            classes: contiguous ids of the classes.
            geometry: sizes of the padded batch, the image and the output.
            panoptic: return `panoptic_seg`.
            instance: return `instances`.
        """
        rows = instance_rows = torch.zeros_like(candidates.is_thing)
        if instance:
            rows = instance_rows = self.instance_rows(candidates)
        if panoptic:
            rows = rows | self.panoptic_rows(candidates)
        scored, classes_on_host = self.score(candidates, rows, geometry), None
        if not torch.jit.is_tracing():
            numbers = _copy_numbers(candidates, scored, instance_rows)
            scored, classes_on_host = scored._replace(numbers=numbers), (numbers.is_thing, numbers.class_indices)
        results: dict[str, Any] = {}
        if panoptic:
            segmentation = self.panoptic(candidates, geometry, scored)
            results["panoptic_seg"] = panoptic_result(
                segmentation, candidates, classes, classes_on_host=classes_on_host
            )
        if instance:
            results["instances"] = self.instances(candidates, classes, geometry, scored)
        return results

    def explain(
        self, candidates: Candidates, geometry: ImageGeometry, *, panoptic: bool, instance: bool
    ) -> dict[str, CandidateOutcomes]:
        """Explain why each candidate of an image is, or is not, in its `results`; slower than `results`.

        Args:
            candidates: of the image.
            geometry: sizes of the padded batch, the image and the output.
            panoptic: explain `panoptic_seg`; all candidates compete.
            instance: explain `instances`; the things compete, in their order.

        Returns:
            The outcomes, under the keys of `results`. The reasons are "kept", "empty_mask", and names of config keys:
            "T_CNF", "T_KEEP" ("higher_scores" for PixelArgmax: other candidates have won all pixels), "SCORE_THRESH",
            "DETECTIONS_PER_IMAGE or NMS_THRESH".
        """
        outcomes: dict[str, CandidateOutcomes] = {}
        if panoptic:
            scored = self.score(candidates, None, geometry)
            segments = self.panoptic(candidates, geometry, scored).segments
            outcomes["panoptic_seg"] = explain_rejections(
                candidates,
                confidence=self.decisive_confidence(candidates, scored.masks.confidence),
                has_mask=self.has_mask(scored.masks),
                is_confident=self.is_kept(candidates, scored.masks.confidence),
                is_kept=_among(len(candidates.is_thing), [one.candidate for one in segments]),
                confidence_key="T_CNF",
                last_key=self.last_obstacle,
            )
        if instance:
            things = candidates.select(candidates.is_thing)
            everything = self.score(things, None, geometry)
            numbers = _copy_numbers(things, everything, self.instance_rows(things))
            order = self._instance_order(everything, numbers)
            outcomes["instances"] = explain_rejections(
                things,
                confidence=everything.masks.confidence,
                has_mask=everything.masks.area > 0,
                is_confident=everything.masks.confidence >= self.instance.score_thresh,
                is_kept=_among(len(things.is_thing), order.tolist()),
                confidence_key="SCORE_THRESH",
                last_key="DETECTIONS_PER_IMAGE or NMS_THRESH",
            )
        return outcomes

    def decisive_confidence(self, candidates: Candidates, confidence: Tensor) -> Tensor:
        """(N,) values that `is_kept` compares with T_CNF, for candidates with this (N,) confidence."""
        return confidence

    def has_mask(self, masks: ScoredMasks) -> Tensor:
        """(N,) bool, whether the candidate's mask allows a segment."""
        return masks.area > 0

    @abc.abstractmethod
    def panoptic_rows(self, candidates: Candidates) -> Tensor:
        """(N,) bool, the candidates that `panoptic` needs scored."""

    @abc.abstractmethod
    def panoptic(
        self, candidates: Candidates, geometry: ImageGeometry, scored: ScoredCandidates | None = None
    ) -> PanopticSegmentation:
        """Assign each pixel of the output to a candidate, or to none.

        Args:
            candidates: of one image.
            geometry: sizes of the padded batch, the image and the output.
            scored: scores of at least `panoptic_rows`; None: not scored yet.
        """

    @abc.abstractmethod
    def is_kept(self, candidates: Candidates, confidence: Tensor) -> Tensor:
        """(N,) bool, whether candidates with this (N,) confidence reach T_CNF."""

    def instance_rows(self, candidates: Candidates) -> Tensor:
        """(N,) bool, the candidates that `instances` needs scored.

        These are the `max_per_image` most confident things, by their masks before resizing, except things that are
        certainly empty or cannot reach `score_thresh`.
        """
        thresholds = self._thresholds(candidates)
        possible = upper_bound(candidates, thresholds, self.mask_threshold) > max(self.instance.score_thresh, 0.0)
        height, width = as_integers(candidates.mask_scores.shape[1:])
        size = (height, width)
        confidence = self._score_masks(candidates, thresholds, ImageGeometry(size, size, size)).confidence
        confidence = confidence.masked_fill(~candidates.is_thing, -1.0)
        best = confidence.argsort(descending=True, stable=True)[: self.instance.max_per_image]
        return possible & candidates.is_thing & torch.zeros_like(possible).index_fill(0, best, 1)

    def instances(
        self,
        candidates: Candidates,
        classes: PanopticClasses,
        geometry: ImageGeometry,
        scored: ScoredCandidates | None = None,
    ) -> Instances:
        """The thing candidates as instances, in order of the confidence of mask-wise merging.

        Args:
            candidates: of one image.
            classes: contiguous ids of the classes.
            geometry: sizes of the padded batch, the image and the output.
            scored: scores of at least `instance_rows`; None: not scored yet.

        Returns:
            Detectron2's Instances at output size: pred_masks (bool), pred_boxes (pixels), scores, pred_classes
            (contiguous ids). Within a class the mask IoU is at most `nms_thresh`; empty masks are dropped.
        """
        numbers = None if scored is None else scored.numbers
        if scored is None or numbers is None:
            rows = self.instance_rows(candidates)
            scored = scored or self.score(candidates, rows, geometry)
            if torch.jit.is_tracing():
                order = self._instance_order_in_a_trace(rows, scored)
            else:
                numbers = _copy_numbers(candidates, scored, rows)
        masks = scored.masks
        if numbers is not None:
            order = upload_numbers(self._instance_order(scored, numbers), masks.masks.device, torch.long)
        chosen, boxes = scored.candidates.select(order), self.instance.boxes
        return instance_result(chosen, masks.masks[order], masks.confidence[order], classes, geometry, boxes=boxes)

    def _instance_order(self, scored: ScoredCandidates, numbers: CandidateNumbers) -> np.ndarray:
        """Positions of the instances among the scored candidates, best first."""
        is_reported = numbers.is_instance & (numbers.area > 0) & (numbers.confidence >= self.instance.score_thresh)
        order = np.argsort(-numbers.confidence, kind="stable")
        order = order[is_reported[order]]
        threshold = self.instance.nms_thresh
        if threshold >= 1 or len(order) < 2:
            return order
        masks = [scored.masks.masks[position] for position in order.tolist()]
        boxes = numbers.boxes
        if boxes is None:
            boxes = np.empty((len(numbers.area), 4), dtype=np.int64)
            [boxes[order]] = download_arrays(tight_boxes(torch.stack(masks))[0])
        classes = numbers.class_indices[numbers.positions]
        return order[suppress_masks(masks, boxes[order], numbers.area[order], classes[order], threshold)]

    def _instance_order_in_a_trace(self, rows: Tensor, scored: ScoredCandidates) -> Tensor:
        """`_instance_order` as tensor operations, without NMS: a trace would store decisions of the host."""
        positions, masks = scored.positions, scored.masks
        is_reported = rows[positions] & (masks.area > 0) & (masks.confidence >= self.instance.score_thresh)
        order = masks.confidence.argsort(descending=True, stable=True)
        return order[is_reported[order]]

    def score(self, candidates: Candidates, rows: Tensor | None, geometry: ImageGeometry) -> ScoredCandidates:
        """Resize the candidates of `rows`, (N,) bool, to the output size and compute their confidence.

        None: all candidates. A trace scores all candidates, since their number is a constant in it.
        """
        if rows is None or torch.jit.is_tracing():
            positions = torch.arange(len(candidates.is_thing), device=candidates.is_thing.device)
        else:
            positions = rows.nonzero()[:, 0]
        chosen = candidates.select(positions)
        return ScoredCandidates(positions, chosen, self._score_masks(chosen, self._thresholds(chosen), geometry))

    def _thresholds(self, candidates: Candidates) -> CandidateThresholds:
        return per_candidate(candidates.is_thing, self.things, self.stuff)

    def _score_masks(
        self, candidates: Candidates, thresholds: CandidateThresholds, geometry: ImageGeometry
    ) -> ScoredMasks:
        return score_masks(
            candidates, geometry, thresholds, mask_threshold=self.mask_threshold, extra_pixels=self.extra_pixels
        )


def _copy_numbers(candidates: Candidates, scored: ScoredCandidates, instance_rows: Tensor) -> CandidateNumbers:
    """The numbers of candidates on the host; `instance_rows` (N,) bool."""
    masks = scored.masks
    boxes = [tight_boxes(masks.masks)[0]] if paints_on_device(masks.masks) else []
    is_instance = instance_rows[scored.positions]
    numbers = (candidates.is_thing, candidates.class_indices, scored.positions, is_instance, masks.area)
    return CandidateNumbers(*download_arrays(*numbers, masks.confidence, *boxes))


def _among(count: int, positions: list[int]) -> Tensor:
    """(count,) bool, True at these positions."""
    flags = torch.zeros(count, dtype=torch.bool)
    flags[positions] = True
    return flags


@POST_PROCESSOR_REGISTRY.register()
class MaskWiseMerging(PostProcessor):
    """The paper's strategy (section 3.5, Algorithm 1): whole masks in order of confidence."""

    def panoptic_rows(self, candidates: Candidates) -> Tensor:
        """Candidates that may reach T_CNF after resizing."""
        thresholds = self._thresholds(candidates)
        return upper_bound(candidates, thresholds, self.mask_threshold) >= thresholds.t_cnf

    def is_kept(self, candidates: Candidates, confidence: Tensor) -> Tensor:
        return confidence >= self._thresholds(candidates).t_cnf

    def panoptic(
        self, candidates: Candidates, geometry: ImageGeometry, scored: ScoredCandidates | None = None
    ) -> PanopticSegmentation:
        scored = scored or self.score(candidates, self.panoptic_rows(candidates), geometry)
        masks = scored.masks
        if torch.jit.is_tracing():  # all candidates are scored, so positions are those of the candidates
            thresholds = self._thresholds(candidates)
            return mask_wise_merging(masks.confidence, masks.masks, masks.area, thresholds.t_cnf, thresholds.t_keep)
        numbers = scored.numbers or _copy_numbers(candidates, scored, torch.zeros_like(candidates.is_thing))
        is_thing = numbers.is_thing[numbers.positions]
        t_cnf, t_keep = (
            np.where(is_thing, getattr(self.things, name), getattr(self.stuff, name)) for name in ("t_cnf", "t_keep")
        )
        merged = merge_masks(masks.masks, MaskNumbers(numbers.confidence, numbers.area, t_cnf, t_keep, numbers.boxes))
        originals = numbers.positions.tolist()
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
    """DETR's strategy (table 7, "p"): T_CNF bounds the class probability; the highest mask score wins a pixel."""

    last_obstacle = "higher_scores"

    def has_mask(self, masks: ScoredMasks) -> Tensor:
        return torch.ones_like(masks.area, dtype=torch.bool)  # scores are compared with one another, not thresholded

    def panoptic(
        self, candidates: Candidates, geometry: ImageGeometry, scored: ScoredCandidates | None = None
    ) -> PanopticSegmentation:
        return pixel_argmax(candidates, geometry, self._thresholds(candidates).t_cnf)


@POST_PROCESSOR_REGISTRY.register()
class ClassTimesMask(_PixelWise):
    """MaskFormer's strategy (table 7, "p*"): T_CNF bounds the class probability; the highest product wins a pixel."""

    def panoptic(
        self, candidates: Candidates, geometry: ImageGeometry, scored: ScoredCandidates | None = None
    ) -> PanopticSegmentation:
        thresholds = self._thresholds(candidates)
        return class_times_mask(candidates, geometry, thresholds.t_cnf, thresholds.t_keep, self.mask_threshold)


def build_post_processor(cfg: CfgNode) -> PostProcessor:
    """The post-processor that MODEL.PSF.POST_PROCESSOR.NAME names."""
    return POST_PROCESSOR_REGISTRY.get(cfg.MODEL.PSF.POST_PROCESSOR.NAME)(cfg)


def _instance_settings(cfg: CfgNode) -> InstanceSettings:
    """Read MODEL.PSF.TEST.INSTANCE.

    Raises:
        UserError: if a value is out of range; the message names the key.
    """
    node, activation = cfg.MODEL.PSF.TEST.INSTANCE, cfg.MODEL.PSF.MASK_DECODER.MASK_ACTIVATION
    highest = math.inf if activation == "relu" else 1.0  # of the confidence
    if not 0 <= node.SCORE_THRESH <= highest:
        expected = "0 or more" if activation == "relu" else "a confidence from 0 to 1"
        raise UserError(
            f"MODEL.PSF.TEST.INSTANCE.SCORE_THRESH is {node.SCORE_THRESH}: expected {expected}, as "
            f'MASK_DECODER.MASK_ACTIVATION is "{activation}"'
        )
    max_per_image = cfg.TEST.DETECTIONS_PER_IMAGE
    if max_per_image < 1:
        raise UserError(f"TEST.DETECTIONS_PER_IMAGE is {max_per_image}: expected 1 or more")
    if not 0 <= node.NMS_THRESH <= 1:
        raise UserError(
            f"MODEL.PSF.TEST.INSTANCE.NMS_THRESH is {node.NMS_THRESH}: expected an IoU from 0 to 1; 1 keeps all"
        )
    return InstanceSettings(node.BOXES, node.SCORE_THRESH, max_per_image, node.NMS_THRESH)
