"""Match predicted and ground-truth segments by panopticapi's rules, in mask or boundary IoU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from psf.errors import UserError

__all__ = [
    "BOUNDARY_RATIO",
    "Match",
    "Overlaps",
    "SegmentMatches",
    "Unmatched",
    "boundary_width",
    "count_overlaps",
    "match_segments",
    "match_with_boundaries",
    "segment_boundaries",
]

BOUNDARY_RATIO = 0.02  # width of the region as a share of the image's diagonal, as published
VOID = 0
Segments = Sequence[Mapping[str, Any]]


class Match(NamedTuple):
    """A ground-truth segment and the prediction that matches it."""

    category: int  # id of the ground truth's JSON
    iou: float
    area: int  # of the ground-truth segment: from the JSON, else counted


class Unmatched(NamedTuple):
    """A segment without a match."""

    category: int
    area: int  # its own, in pixels


class SegmentMatches(NamedTuple):
    """Contribution of one image to the panoptic quality."""

    true_positives: list[Match]
    false_positives: list[Unmatched]
    false_negatives: list[Unmatched]

    def of_area(self, low: float, high: float) -> SegmentMatches:
        """The matches and segments with low <= area < high; a match has the ground-truth segment's area."""
        return SegmentMatches(
            [one for one in self.true_positives if low <= one.area < high],
            [one for one in self.false_positives if low <= one.area < high],
            [one for one in self.false_negatives if low <= one.area < high],
        )


class Overlaps(NamedTuple):
    """Number of pixels that each ground-truth id (row) shares with each predicted id (column).

    gt_ids: (G,) and pred_ids: (P,), the ids that occur, ascending, including void.
    pixels: (G, P, 2, 2) int64: the last two dimensions separate pixels inside (0) from those on the boundary (1) of the
        ground-truth and of the predicted segment. Without boundaries (G, P, 1, 1).
    """

    gt_ids: np.ndarray
    pred_ids: np.ndarray
    pixels: np.ndarray


def boundary_width(height: int, width: int, ratio: float = BOUNDARY_RATIO) -> int:
    """The paper's d in pixels: a share of the diagonal, rounded, at least 1."""
    return max(round(ratio * float(np.hypot(height, width))), 1)


def segment_boundaries(labels: np.ndarray, width: int) -> np.ndarray:
    """The pixels that `width` erosions with a 3x3 square remove from their segment; the image border erodes too.

    These are the pixels with another label, or the outside, at most `width` rows and columns away; equivalently, the
    pixels at most `width` - 1 away from a pixel that touches another label. So one dilation of the touching pixels
    replaces the published code's erosion per segment.

    Args:
        labels: (H, W) ids.
        width: in pixels, at least 1.

    Returns:
        (H, W) uint8, 1 on a boundary.
    """
    touching = np.zeros(labels.shape, dtype=np.uint8)
    touching[[0, -1]] = touching[:, [0, -1]] = 1
    here, there = slice(None, -1), slice(1, None)
    for one, other in (
        ((slice(None), here), (slice(None), there)),
        ((here, slice(None)), (there, slice(None))),
        ((here, here), (there, there)),
        ((here, there), (there, here)),
    ):
        differs = labels[one] != labels[other]
        touching[one] |= differs
        touching[other] |= differs
    if width == 1:
        return touching
    return cv2.dilate(touching, np.ones((2 * width - 1, 2 * width - 1), dtype=np.uint8))


def match_segments(
    gt_labels: np.ndarray,
    gt_segments: Segments,
    pred_labels: np.ndarray,
    pred_segments: Segments,
    weights: np.ndarray | None = None,
) -> SegmentMatches:
    """Match predicted and ground-truth segments of the same category by IoU > 0.5, with the union without void.

    Crowds are neither matched nor missed. A prediction with more than half of its area in void and a crowd of its
    category is not a false positive.

    Args:
        gt_labels, pred_labels: (H, W) segment ids, 0 is void.
        gt_segments: dicts with `id`, `category_id`, and optionally `iscrowd` and `area`. As in panopticapi the area is
            that of the JSON; if missing, it is counted.
        pred_segments: dicts with `id` and `category_id`, one for each id in pred_labels except 0.
        weights: number of pixels that each entry of the maps stands for, in their shape; None: one.

    Returns:
        The matches in panopticapi's order: by ground-truth id, then by predicted id.

    Raises:
        UserError: if the sizes differ, or if pred_segments and pred_labels do not have the same ids.
    """
    image = _Image(count_overlaps(gt_labels, pred_labels, weights=weights), gt_segments, pred_segments)
    return image.match(image.mask_ious())


def match_with_boundaries(
    gt_labels: np.ndarray,
    gt_segments: Segments,
    pred_labels: np.ndarray,
    pred_segments: Segments,
    ratio: float = BOUNDARY_RATIO,
) -> tuple[SegmentMatches, SegmentMatches]:
    """The result of `match_segments`, and the same with the smaller of mask IoU and boundary IoU.

    The boundary IoU is the IoU of the two segments' boundary regions, without void in the union (Boundary PQ of Cheng
    et al., arXiv 2103.16562). Both results use masks to decide whether void and crowds excuse a prediction.

    Args:
        ratio: width of the boundary region as a share of the image's diagonal.

    In the published boundary-iou-api, unlike here, a segment whose id is one above the largest category id also
    includes the inner pixels of the segments listed before it.
    """
    height, width = gt_labels.shape
    distance = boundary_width(height, width, ratio)
    flags = segment_boundaries(gt_labels, distance), segment_boundaries(pred_labels, distance)
    image = _Image(count_overlaps(gt_labels, pred_labels, flags), gt_segments, pred_segments)
    mask_ious = image.mask_ious()
    return image.match(mask_ious), image.match(np.minimum(mask_ious, image.boundary_ious()))


def count_overlaps(
    gt_labels: np.ndarray,
    pred_labels: np.ndarray,
    boundaries: tuple[np.ndarray, np.ndarray] | None = None,
    weights: np.ndarray | None = None,
) -> Overlaps:
    """Count the pixels that each pair of ids shares.

    Args:
        gt_labels, pred_labels: (H, W) ids.
        boundaries: of `segment_boundaries`, for both maps; None: `pixels` of the result does not separate them.
        weights: as for `match_segments`.

    Raises:
        UserError: if the sizes differ.
    """
    _check_sizes(gt_labels, pred_labels)
    maps = [one.reshape(-1) for one in (gt_labels, pred_labels, *(boundaries or ()))]
    # Neighbors mostly have equal labels: there are far fewer runs of equal pixels than pixels.
    is_start = np.ones(gt_labels.size, dtype=bool)
    np.not_equal(maps[0][1:], maps[0][:-1], out=is_start[1:])
    for one in maps[1:]:
        is_start[1:] |= one[1:] != one[:-1]
    starts = np.flatnonzero(is_start)
    if weights is None:
        lengths = np.diff(starts, append=gt_labels.size)
    else:
        lengths = np.add.reduceat(weights.reshape(-1), starts)
    values = [one[starts] for one in maps]
    gt_ids, pred_ids = np.unique(values[0]), np.unique(values[1])
    # A search is ten times as fast as the inverse of `unique`.
    cells = np.searchsorted(gt_ids, values[0]) * len(pred_ids) + np.searchsorted(pred_ids, values[1])
    for flags in values[2:]:
        cells = 2 * cells + flags
    side = 1 if boundaries is None else 2
    shape = (len(gt_ids), len(pred_ids), side, side)
    counts = np.bincount(cells, weights=lengths, minlength=int(np.prod(shape)))  # in float64, exact below 2^53
    return Overlaps(gt_ids, pred_ids, counts.astype(np.int64).reshape(shape))


class _Image:
    """The segments of one image, and the pairs that may match: of the same category, not a crowd, overlapping."""

    def __init__(self, overlaps: Overlaps, gt_segments: Segments, pred_segments: Segments) -> None:
        self.split_pixels = overlaps.pixels
        self.pixels = overlaps.pixels.sum(axis=(2, 3))  # (G, P)
        self.gt_ids, self.pred_ids = overlaps.gt_ids.tolist(), overlaps.pred_ids.tolist()
        self.gts = {segment["id"]: segment for segment in gt_segments}
        self.predictions = {segment["id"]: segment for segment in pred_segments}
        occurring = set(self.pred_ids) - {VOID}
        if len(self.predictions) != len(pred_segments) or self.predictions.keys() != occurring:
            raise UserError(
                f"the predicted map has ids {sorted(occurring)}, its segments are "
                f"{sorted(segment['id'] for segment in pred_segments)}; each id except 0 (void) needs exactly one "
                "segment"
            )
        self.pred_areas = self.pixels.sum(axis=0)
        counted = self.pixels.sum(axis=1).tolist()
        self.gt_areas = [self.gts.get(key, {}).get("area", area) for key, area in zip(self.gt_ids, counted)]
        self.excused = self._excused_columns()
        # (row, column) of each pair, by ground-truth id and then by predicted id.
        columns_of: dict[int, list[int]] = {}
        for column, key in enumerate(self.pred_ids):
            if key != VOID:
                columns_of.setdefault(self.predictions[key]["category_id"], []).append(column)
        judged = [
            (row, self.gts[key]["category_id"])
            for row, key in enumerate(self.gt_ids)
            if key in self.gts and not self.gts[key].get("iscrowd", 0)
        ]
        pairs = [(row, column) for row, category in judged for column in columns_of.get(category, ())]
        rows, columns = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        overlapping = self.pixels[rows, columns] > 0
        self.rows, self.columns = rows[overlapping], columns[overlapping]

    def mask_ious(self) -> np.ndarray:
        """Mask IoU of each pair."""
        shared = self.pixels[self.rows, self.columns]
        areas = np.array(self.gt_areas)[self.rows]
        return shared / (self.pred_areas[self.columns] + areas - shared - self._in_void(self.pixels)[self.columns])

    def boundary_ious(self) -> np.ndarray:
        """Boundary IoU of each pair, with counted areas. An area is never 0: every segment has a boundary."""
        on_pred = self.split_pixels[:, :, :, 1].sum(axis=2)  # (G, P): on the predicted segment's boundary
        gt_areas = self.split_pixels[:, :, 1].sum(axis=(1, 2))
        shared = self.split_pixels[self.rows, self.columns, 1, 1]
        not_void = (on_pred.sum(axis=0) - self._in_void(on_pred))[self.columns]
        return shared / (not_void + gt_areas[self.rows] - shared)

    def match(self, ious: np.ndarray) -> SegmentMatches:
        """Match the pairs with an IoU above 0.5; all other segments are unmatched."""
        hits = [
            (self.gt_ids[row], self.pred_ids[column], iou, self.gt_areas[row])
            for row, column, iou in zip(self.rows.tolist(), self.columns.tolist(), ious.tolist())
            if iou > 0.5
        ]
        found, used = {hit[0] for hit in hits}, {hit[1] for hit in hits}
        areas: dict[int, int] = dict(zip(self.gt_ids, self.gt_areas))
        return SegmentMatches(
            [Match(self.gts[key]["category_id"], iou, area) for key, _, iou, area in hits],
            [
                Unmatched(self.predictions[key]["category_id"], area)
                for column, (key, area) in enumerate(zip(self.pred_ids, self.pred_areas.tolist()))
                if key != VOID and key not in used and column not in self.excused
            ],
            [
                Unmatched(gt["category_id"], areas[key] if key in areas else gt.get("area", 0))
                for key, gt in self.gts.items()
                if key not in found and not gt.get("iscrowd", 0)
            ],
        )

    def _excused_columns(self) -> set[int]:
        """Predictions with more than half of their area in void and the (last listed) crowd of their category."""
        crowds = {one["category_id"]: key for key, one in self.gts.items() if one.get("iscrowd", 0)}
        in_void = self._in_void(self.pixels)
        excused = set()
        for column, key in enumerate(self.pred_ids):
            crowd = crowds.get(self.predictions[key]["category_id"]) if key != VOID else None
            in_crowd = self.pixels[self.gt_ids.index(crowd), column] if crowd in self.gt_ids else 0
            if (in_void[column] + in_crowd) / self.pred_areas[column] > 0.5:
                excused.add(column)
        return excused

    def _in_void(self, pixels: np.ndarray) -> np.ndarray:
        """(G, P) -> (P,): the row of void, or zeros if there is no void."""
        return pixels[0] if self.gt_ids[0] == VOID else np.zeros_like(pixels[0])


def _check_sizes(gt_labels: np.ndarray, pred_labels: np.ndarray) -> None:
    if gt_labels.shape != pred_labels.shape:
        raise UserError(
            f"the prediction has (height, width) {pred_labels.shape}, the ground truth {gt_labels.shape}; "
            "a result must have the height and width of the model's input dict"
        )
