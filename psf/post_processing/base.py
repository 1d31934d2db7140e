"""What all post-processors share: the keys, the scores of candidates, and the instances."""

from __future__ import annotations

import abc
from typing import Any, ClassVar, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import Instances
from torch import Tensor

from psf.classes import PanopticClasses
from psf.inference import (
    CandidateOutcomes,
    CandidateThresholds,
    Frame,
    MergingThresholds,
    ScoredMasks,
    explain_rejections,
    mask_nms,
    per_candidate,
    score_masks,
    upper_bound,
)
from psf.post_processing.instance_settings import InstanceSettings, instance_settings
from psf.post_processing.results import instance_result, panoptic_result
from psf.predictions import Candidates, PanopticSegmentation

__all__ = ["PostProcessor", "ScoredCandidates"]


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
        is_tuned: take the thresholds that a checkpoint stores (TUNE_IMAGES above 0), see `psf.engine.Checkpointer`.
    """

    last_obstacle: ClassVar[str] = "T_KEEP"  # what rejects a candidate that has a mask and reaches T_CNF

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
            "instance": instance_settings(cfg),
            "is_tuned": node.TUNE_IMAGES > 0,
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

    def explain(
        self, candidates: Candidates, frame: Frame, *, panoptic: bool, instance: bool
    ) -> dict[str, CandidateOutcomes]:
        """Why candidates of one image are, or are not, in its `results`; slower than those.

        Args:
            candidates: of the image.
            frame: from which size to which.
            panoptic: explain `panoptic_seg`, whose segments are all candidates.
            instance: explain `instances`, whose candidates are the things, in their order.

        Returns:
            Under the keys of `results`; the reasons are "kept", "empty_mask", and names of keys: "T_CNF", "T_KEEP"
            ("higher_scores" for PixelArgmax: other candidates have won all pixels), "SCORE_THRESH",
            "MAX_PER_IMAGE or NMS_THRESH".
        """
        outcomes: dict[str, CandidateOutcomes] = {}
        if panoptic:
            scored = self.score(candidates, torch.ones_like(candidates.is_thing), frame)
            segments = self.panoptic(candidates, frame, scored).segments
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
            everything = self.score(things, torch.ones_like(things.is_thing), frame)
            order = self._instance_order(self.instance_rows(things), everything)
            outcomes["instances"] = explain_rejections(
                things,
                confidence=everything.masks.confidence,
                has_mask=everything.masks.area > 0,
                is_confident=everything.masks.confidence >= self.instance.score_thresh,
                is_kept=_among(len(things.is_thing), order.tolist()),
                confidence_key="SCORE_THRESH",
                last_key="MAX_PER_IMAGE or NMS_THRESH",
            )
        return outcomes

    def decisive_confidence(self, candidates: Candidates, confidence: Tensor) -> Tensor:
        """(N,) what `is_kept` compares with T_CNF, of candidates of this (N,) confidence."""
        return confidence

    def has_mask(self, masks: ScoredMasks) -> Tensor:
        """(N,) bool, whether a candidate could be a segment by its own mask."""
        return masks.area > 0

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

    @abc.abstractmethod
    def is_kept(self, candidates: Candidates, confidence: Tensor) -> Tensor:
        """(N,) bool, whether candidates of this confidence, (N,), reach T_CNF."""

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
        scored = scored or self.score(candidates, rows, frame)
        order, masks = self._instance_order(rows, scored), scored.masks
        chosen, boxes = scored.candidates.select(order), self.instance.boxes
        return instance_result(chosen, masks.masks[order], masks.confidence[order], classes, frame, boxes=boxes)

    def _instance_order(self, rows: Tensor, scored: ScoredCandidates) -> Tensor:
        """Positions, among the scored candidates, of those that become instances, best first."""
        positions, things, masks = scored
        wanted = rows[positions] & (masks.area > 0) & (masks.confidence >= self.instance.score_thresh)
        order = masks.confidence.argsort(descending=True, stable=True)
        order = order[wanted[order]]
        if self.instance.nms_thresh < 1:
            order = order[mask_nms(masks.masks[order], things.class_indices[order], self.instance.nms_thresh)]
        return order

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


def _among(count: int, positions: list[int]) -> Tensor:
    """(count,) bool, True at these positions."""
    flags = torch.zeros(count, dtype=torch.bool)
    flags[positions] = True
    return flags
