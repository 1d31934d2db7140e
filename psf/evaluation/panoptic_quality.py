"""Panoptic quality (Kirillov et al., arXiv 1801.00868) in memory, with panopticapi's rules and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from psf.errors import UserError
from psf.evaluation.segment_matching import SegmentMatches, match_segments

__all__ = ["ClassQuality", "PanopticQuality", "QualityMean"]


@dataclass
class ClassQuality:
    """Counts of one category; the ratios are in [0, 1], and 0 if the category never occurs."""

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

    def in_percent(self, suffix: str = "") -> dict[str, float]:
        """PQ, SQ and RQ by name, with `suffix`."""
        return {f"{name.upper()}{suffix}": 100 * getattr(self, name) for name in ("pq", "sq", "rq")}


class PanopticQuality:
    """Panoptic quality of a set of images, accumulated image by image.

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
            UserError: if a segment's category is not among `categories`.
        """
        unknown = {one.category for part in matches for one in part} - self.categories.keys()
        if unknown:
            raise UserError(f"segments have category ids {sorted(unknown)}; expected ids of {sorted(self.categories)}")
        for match in matches.true_positives:
            self.per_class[match.category].tp += 1
            self.per_class[match.category].iou_sum += match.iou
        for one in matches.false_positives:
            self.per_class[one.category].fp += 1
        for one in matches.false_negatives:
            self.per_class[one.category].fn += 1

    def mean(self, is_thing: bool | None = None) -> QualityMean | None:
        """Means over all categories that occur, or only over things or stuff; None if none occurs."""
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

        If no things (no stuff) occur, their three keys are absent; panopticapi raises in this case.
        """
        result: dict[str, float] = {}
        for suffix, is_thing in (("", None), ("_th", True), ("_st", False)):
            mean = self.mean(is_thing)
            if mean is not None:
                result |= mean.in_percent(suffix)
        return result
