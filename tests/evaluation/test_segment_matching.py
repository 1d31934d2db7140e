"""Boundary PQ: by hand, and against plain loops over the definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from psf.evaluation import PanopticQuality, match_segments, match_with_boundaries
from psf.evaluation.segment_matching import boundary_width, segment_boundaries
from tests.evaluation.label_maps import label_maps, segments_of

THING, STUFF = 1, 2


def eroded(mask: np.ndarray, times: int) -> np.ndarray:
    """Erode with a 3x3 square, pixel by pixel; the outside of the image is no mask."""
    height, width = mask.shape
    for _ in range(times):
        smaller = np.zeros_like(mask)
        for y in range(1, height - 1):
            for x in range(1, width - 1):
                smaller[y, x] = all(mask[y + dy, x + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1))
        mask = smaller
    return mask


def naive_boundary(labels: np.ndarray, one: int, width: int) -> np.ndarray:
    mask = labels == one
    return mask & ~eroded(mask, width)


@settings(max_examples=60, deadline=None)
@given(
    labels=hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3)),
    width=st.integers(1, 4),
    zoom=st.integers(1, 3),
)
def test_boundaries_of_all_segments_are_those_of_each(labels: np.ndarray, width: int, zoom: int):
    labels = labels.repeat(zoom, axis=0).repeat(zoom, axis=1)
    flags = segment_boundaries(labels, width)
    for one in np.unique(labels):
        np.testing.assert_array_equal(flags.astype(bool) & (labels == one), naive_boundary(labels, one, width))


@pytest.mark.parametrize(
    ("size", "width"), [((480, 640), 16), ((1, 1), 1), ((30, 40), 1), ((48, 64), 2), ((75, 100), 2)]
)
def test_width_is_a_share_of_the_diagonal(size: tuple[int, int], width: int):
    # 0.02 x 800 = 16; at least 1; 0.02 x 50 = 1; 0.02 x 80 = 1.6, rounded; 0.02 x 125 = 2.5, to even
    assert boundary_width(*size) == width


def test_by_hand():
    # A thing of 5 x 5 pixels on stuff, 7 x 9 in all; predicted one column too far to the right. The width is 1.
    gt, predicted = (np.full((7, 9), 2) for _ in range(2))
    gt[1:6, 1:6] = predicted[1:6, 2:7] = 1
    categories = {1: THING, 2: STUFF}
    maps = (gt, segments_of(gt, categories), predicted, segments_of(predicted, categories))
    by_mask, by_boundary = match_with_boundaries(*maps)
    # Thing: masks share 5 * 4 of 25 + 25 - 20 = 30. Stuff: 63 - 30 = 33 of 38 + 38 - 33 = 43.
    assert by_mask.true_positives == [(THING, 20 / 30, 25), (STUFF, 33 / 43, 38)]
    assert by_mask == match_segments(*maps)
    # Thing: rings of 25 - 9 = 16 share 4 pixels of the upper and of the lower row: 8 of 16 + 16 - 8 = 24, no match.
    # Stuff: a frame of 2 * (7 + 9) - 4 = 28, in the ground truth with 5 right of the thing (33), in the prediction with
    # 5 on either side (38). They share the frame: 28 of 33 + 38 - 28 = 43, less than the masks' IoU.
    assert by_boundary.true_positives == [(STUFF, 28 / 43, 38)]
    assert by_boundary.false_positives == by_boundary.false_negatives == [(THING, 25)]


def naive_counts(
    gt_labels: np.ndarray,
    gt_segments: list[dict[str, Any]],
    pred_labels: np.ndarray,
    pred_segments: list[dict[str, Any]],
) -> dict[int, list[float]]:
    """Category -> tp, fp, fn, sum of IoUs of Boundary PQ, mask by mask."""
    width = boundary_width(*gt_labels.shape)
    counts = {category: [0, 0, 0, 0.0] for category in (1, 2, 3)}
    void = gt_labels == 0
    matched_gts, matched_predictions = set(), set()
    for gt in sorted(gt_segments, key=lambda one: one["id"]):
        for prediction in sorted(pred_segments, key=lambda one: one["id"]):
            if gt["iscrowd"] or gt["category_id"] != prediction["category_id"]:
                continue
            ious = []
            for mask, other in (
                (gt_labels == gt["id"], pred_labels == prediction["id"]),
                (naive_boundary(gt_labels, gt["id"], width), naive_boundary(pred_labels, prediction["id"], width)),
            ):
                union = (mask | other & ~void).sum()
                ious.append((mask & other).sum() / union if union else 0.0)
            if min(ious) > 0.5:
                counts[gt["category_id"]][0] += 1
                counts[gt["category_id"]][3] += min(ious)
                matched_gts.add(gt["id"])
                matched_predictions.add(prediction["id"])
    for gt in gt_segments:
        counts[gt["category_id"]][2] += not gt["iscrowd"] and gt["id"] not in matched_gts
    for prediction in pred_segments:
        mask = pred_labels == prediction["id"]
        crowds = [
            one["id"] for one in gt_segments if one["iscrowd"] and one["category_id"] == prediction["category_id"]
        ]
        excused = void | (gt_labels == crowds[-1]) if crowds else void
        if prediction["id"] not in matched_predictions and (mask & excused).sum() / mask.sum() <= 0.5:
            counts[prediction["category_id"]][1] += 1
    return counts


@settings(max_examples=60, deadline=None)
@given(image=label_maps(), zoom=st.integers(1, 3))
def test_random_maps_equal_plain_loops(image: tuple, zoom: int):
    gt_labels, gt_segments, pred_labels, pred_segments = image
    gt_labels, pred_labels = (one.repeat(zoom, axis=0).repeat(zoom, axis=1) for one in (gt_labels, pred_labels))
    gt_segments = [one | {"area": int((gt_labels == one["id"]).sum())} for one in gt_segments]
    by_mask, by_boundary = match_with_boundaries(gt_labels, gt_segments, pred_labels, pred_segments)
    assert by_mask == match_segments(gt_labels, gt_segments, pred_labels, pred_segments)
    result = PanopticQuality({1: True, 2: False, 3: True})
    result.add_matches(by_boundary)
    expected = naive_counts(gt_labels, gt_segments, pred_labels, pred_segments)
    assert {key: [one.tp, one.fp, one.fn, one.iou_sum] for key, one in result.per_class.items()} == expected
