"""Panoptic quality (Kirillov et al., arXiv 1801.00868) in memory, by panopticapi's rules and with its very numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

__all__ = ["ClassQuality", "PanopticQuality", "QualityMean", "SegmentMatches", "match_segments"]

VOID = 0


class SegmentMatches(NamedTuple):
    """What one image adds to the panoptic quality; categories are ids of the ground truth's JSON."""

    true_positives: list[tuple[int, float]]  # (category, IoU) of each matched pair
    false_positives: list[int]  # category of each prediction left alone
    false_negatives: list[int]  # category of each ground truth left alone


@dataclass
class ClassQuality:
    """Counts of one category; the ratios are in [0, 1], and 0 where a category never occurs."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    iou_sum: float = 0.0

    @property
    def occurs(self) -> bool:
        """Whether any segment of the category was counted; only such categories enter a mean."""
        return self.tp + self.fp + self.fn > 0

    @property
    def pq(self) -> float:
        return self.iou_sum / self._size if self.occurs else 0.0

    @property
    def sq(self) -> float:
        return self.iou_sum / self.tp if self.tp else 0.0

    @property
    def rq(self) -> float:
        return self.tp / self._size if self.occurs else 0.0

    @property
    def _size(self) -> float:
        return self.tp + 0.5 * self.fp + 0.5 * self.fn


class QualityMean(NamedTuple):
    """Means over the categories that occur, in [0, 1]."""

    pq: float
    sq: float
    rq: float
    num_classes: int


class PanopticQuality:
    """Panoptic quality of a set of images, built up one image at a time.

    Args:
        categories: category id -> whether it is a thing, in the order of the JSON (sums follow this order).
    """

    def __init__(self, categories: Mapping[int, bool]) -> None:
        self.categories = dict(categories)
        self.per_class = {category: ClassQuality() for category in self.categories}

    def add(
        self,
        gt_labels: np.ndarray,
        gt_segments: Sequence[Mapping[str, Any]],
        pred_labels: np.ndarray,
        pred_segments: Sequence[Mapping[str, Any]],
    ) -> None:
        """Match one image's segments, as `match_segments` does, and count them."""
        self.add_matches(match_segments(gt_labels, gt_segments, pred_labels, pred_segments))

    def add_matches(self, matches: SegmentMatches) -> None:
        """Count one image.

        Raises:
            ValueError: if a segment's category is not among `categories`.
        """
        used = {category for category, _ in matches.true_positives}
        unknown = (used | {*matches.false_positives, *matches.false_negatives}) - self.categories.keys()
        if unknown:
            raise ValueError(f"segments have category ids {sorted(unknown)}, known are {sorted(self.categories)}")
        for category, iou in matches.true_positives:
            self.per_class[category].tp += 1
            self.per_class[category].iou_sum += iou
        for category in matches.false_positives:
            self.per_class[category].fp += 1
        for category in matches.false_negatives:
            self.per_class[category].fn += 1

    def mean(self, is_thing: bool | None = None) -> QualityMean | None:
        """Means over all categories that occur, or over the things or the stuff among them; None if there are none."""
        qualities = [
            self.per_class[category]
            for category, thing in self.categories.items()
            if is_thing in (None, thing) and self.per_class[category].occurs
        ]
        if not qualities:
            return None
        count = len(qualities)
        pq, sq, rq = (sum(getattr(quality, name) for quality in qualities) / count for name in ("pq", "sq", "rq"))
        return QualityMean(pq, sq, rq, count)

    def summarise(self) -> dict[str, float]:
        """PQ, SQ, RQ, then the same with _th (things) and _st (stuff), in percent.

        Differs from panopticapi: where no category of a kind occurs, its three keys are left out; there it raises.
        """
        result = {}
        for suffix, is_thing in (("", None), ("_th", True), ("_st", False)):
            mean = self.mean(is_thing)
            if mean is not None:
                result[f"PQ{suffix}"] = 100 * mean.pq
                result[f"SQ{suffix}"] = 100 * mean.sq
                result[f"RQ{suffix}"] = 100 * mean.rq
        return result


def match_segments(
    gt_labels: np.ndarray,
    gt_segments: Sequence[Mapping[str, Any]],
    pred_labels: np.ndarray,
    pred_segments: Sequence[Mapping[str, Any]],
) -> SegmentMatches:
    """Match predicted segments with true ones of the same category by IoU > 0.5, the union taken without void.

    Crowds are neither matched nor missed, and a prediction that lies for more than half in void and in a crowd of its
    own category is not counted against the model.

    Args:
        gt_labels, pred_labels: (H, W) segment ids in [0, 2^31), 0 is void.
        gt_segments: dicts with `id`, `category_id`, and `iscrowd` and `area` if known. As in panopticapi the area is
            the JSON's; without one it is counted.
        pred_segments: dicts with `id` and `category_id`, one for each id in pred_labels but 0.

    Returns:
        The matches in panopticapi's order: by true id, then by predicted id.

    Raises:
        ValueError: if the sizes differ, or if pred_segments and pred_labels do not have the same ids.
    """
    if gt_labels.shape != pred_labels.shape:
        raise ValueError(
            f"the prediction has (height, width) {pred_labels.shape}, the ground truth {gt_labels.shape}; "
            "a result must have the height and width of the model's input dict"
        )
    intersections = _intersections(gt_labels, pred_labels)
    gt_areas: dict[int, int] = {}
    pred_areas: dict[int, int] = {}
    for (gt_id, pred_id), pixels in intersections.items():
        gt_areas[gt_id] = gt_areas.get(gt_id, 0) + pixels
        pred_areas[pred_id] = pred_areas.get(pred_id, 0) + pixels

    truths = {segment["id"]: segment for segment in gt_segments}
    predictions = {segment["id"]: segment for segment in pred_segments}
    if len(predictions) != len(pred_segments) or predictions.keys() != pred_areas.keys() - {VOID}:
        raise ValueError(
            f"the predicted map has ids {sorted(pred_areas.keys() - {VOID})}, its segments are "
            f"{sorted(segment['id'] for segment in pred_segments)}; each id but 0 (void) needs exactly one segment"
        )

    true_positives, matched_truths, matched_predictions = [], set(), set()
    for (gt_id, pred_id), pixels in intersections.items():
        truth, prediction = truths.get(gt_id), predictions.get(pred_id)
        if truth is None or prediction is None or truth.get("iscrowd", 0):
            continue
        if truth["category_id"] != prediction["category_id"]:
            continue
        in_void = intersections.get((VOID, pred_id), 0)
        iou = pixels / (pred_areas[pred_id] + truth.get("area", gt_areas[gt_id]) - pixels - in_void)
        if iou > 0.5:
            true_positives.append((truth["category_id"], iou))
            matched_truths.add(gt_id)
            matched_predictions.add(pred_id)

    crowds = {truth["category_id"]: gt_id for gt_id, truth in truths.items() if truth.get("iscrowd", 0)}
    false_positives = []
    for pred_id, prediction in predictions.items():
        if pred_id in matched_predictions:
            continue
        excused = intersections.get((VOID, pred_id), 0)
        if prediction["category_id"] in crowds:
            excused += intersections.get((crowds[prediction["category_id"]], pred_id), 0)
        if excused / pred_areas[pred_id] <= 0.5:
            false_positives.append(prediction["category_id"])
    false_negatives = [
        truth["category_id"]
        for gt_id, truth in truths.items()
        if gt_id not in matched_truths and not truth.get("iscrowd", 0)
    ]
    return SegmentMatches(true_positives, false_positives, false_negatives)


def _intersections(gt_labels: np.ndarray, pred_labels: np.ndarray) -> dict[tuple[int, int], int]:
    """Number of pixels of each (true id, predicted id) that occurs, in the order of the ids."""
    pairs = (gt_labels.astype(np.int64) << 32 | pred_labels.astype(np.int64)).reshape(-1)
    # Neighbours mostly share their pair, so that sorting runs of equal pixels is far cheaper than sorting pixels.
    starts = np.flatnonzero(np.diff(pairs, prepend=-1))
    lengths = np.diff(starts, append=len(pairs))
    unique, positions = np.unique(pairs[starts], return_inverse=True)
    counts = np.bincount(positions, weights=lengths).astype(np.int64)
    true_ids, predicted_ids = unique >> 32, unique & 0xFFFFFFFF
    return dict(zip(zip(true_ids.tolist(), predicted_ids.tolist()), counts.tolist()))
