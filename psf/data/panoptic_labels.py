"""Read a panoptic PNG and its segments as a compact label map, the form of ground truth in psf."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from detectron2.utils.logger import log_first_n

from psf.data.images import is_deep, open_image
from psf.data.panoptic_format import check_segment_ids, shorten
from psf.errors import UserError

__all__ = [
    "MeasuredSegments",
    "PanopticLabels",
    "compact",
    "compact_with_boxes",
    "measure_panoptic_png",
    "pixel_runs",
    "read_panoptic_ids",
    "read_panoptic_labels",
]

_NEEDED_KEYS = {"id", "category_id", "isthing"}


class PanopticLabels(NamedTuple):
    """One image's ground truth.

    labels: (H, W) uint8, int16 or int32, the smallest type for the ids; 0 is void, k > 0 the segment whose `id` is k.
    segments: {"id": k, "category_id": int, "isthing": bool, "iscrowd": bool}, ids 1..S in order, each with a pixel.
    """

    labels: np.ndarray
    segments: list[dict[str, Any]]


class MeasuredSegments(NamedTuple):
    """The content of a panoptic PNG, independent of its JSON.

    size: (height, width) in pixels.
    ids: (S,) ids in the PNG, ascending; 0 is void.
    areas: (S,) in pixels.
    boxes_xyxy_px: (S, 4), x1 and y1 exclusive.
    """

    size: tuple[int, int]
    ids: np.ndarray
    areas: np.ndarray
    boxes_xyxy_px: np.ndarray


def read_panoptic_labels(file_name: str, segments_info: Sequence[Mapping[str, Any]]) -> PanopticLabels:
    """Read a COCO panoptic PNG (id = R + 256 G + 65536 B, 0 is void) and match it with the segments in its JSON.

    A segment without a pixel is dropped, with a warning for the first file where that happens.

    Args:
        file_name: path of the PNG.
        segments_info: Detectron2's: `id` as in the PNG, `category_id`, `isthing`, and `iscrowd` for crowds.

    Raises:
        UserError: if the PNG is missing, unreadable or not in colour, has ids that the JSON does not list, or if
            the JSON has duplicate ids or the id 0.
    """
    for segment in segments_info:
        if not segment.keys() >= _NEEDED_KEYS:
            raise UserError(
                f"{file_name}: segments_info has a segment without {_NEEDED_KEYS - segment.keys()}: {shorten(segment)}"
            )
    known = [segment["id"] for segment in segments_info]
    check_segment_ids(known, file_name)

    ids = _read_ids(file_name)
    starts, runs = pixel_runs(ids)
    present = _check_ids(file_name, runs, known)
    absent = sorted(set(known) - present)
    if absent:
        message = f"{file_name}: segments {absent[:10]} of the JSON have no pixel in the PNG and are dropped"
        log_first_n(logging.WARNING, message, key="caller", name=__name__)
    kept = sorted((one for one in segments_info if one["id"] in present), key=lambda one: one["id"])
    # Runs are looked up in a list of S ids: a table of all 2^24 ids would take more time, and memory in each worker.
    positions = np.searchsorted([0, *(segment["id"] for segment in kept)], runs)
    lengths = np.diff(starts, append=ids.size)
    labels = np.repeat(positions.astype(_label_type(len(kept))), lengths).reshape(ids.shape)
    segments = [
        {
            "id": position,
            "category_id": int(segment["category_id"]),
            "isthing": bool(segment["isthing"]),
            "iscrowd": bool(segment.get("iscrowd", False)),
        }
        for position, segment in enumerate(kept, 1)
    ]
    return PanopticLabels(labels, segments)


def read_panoptic_ids(file_name: str, known: Iterable[int]) -> np.ndarray:
    """The (H, W) uint32 ids of a COCO panoptic PNG; 0 is void.

    A warning names known ids without a pixel, for the first such file: metrics count them as missed.

    Raises:
        UserError: if the PNG is missing, unreadable or not in colour, or has ids other than 0 and those in `known`.
    """
    known = set(known)
    ids = _read_ids(file_name)
    absent = sorted(known - _check_ids(file_name, pixel_runs(ids)[1], known))
    if absent:
        message = f"{file_name}: segments {absent[:10]} of the JSON have no pixel in the PNG and count as missed"
        log_first_n(logging.WARNING, message, key="caller", name=__name__)
    return ids


def measure_panoptic_png(file_name: str) -> MeasuredSegments:
    """Ids, areas and boxes of a COCO panoptic PNG; a UserError if it is missing, unreadable or not in colour."""
    ids = _read_ids(file_name)
    starts, runs = pixel_runs(ids)
    present, boxes = _boxes(starts, runs, ids.shape[1])
    areas = np.bincount(np.searchsorted(present, runs), weights=np.diff(starts, append=ids.size))
    return MeasuredSegments((ids.shape[0], ids.shape[1]), present, areas.astype(np.int64), boxes)


def _check_ids(file_name: str, ids: np.ndarray, known: Iterable[int]) -> set[int]:
    """The ids in the PNG; a UserError if an id is neither 0 nor known."""
    present = set(np.unique(ids).tolist())
    unknown = sorted(present - {0, *known})
    if unknown:
        raise UserError(
            f"{file_name}: the PNG has ids that segments_info does not list: {unknown[:10]}"
            f"{' ...' if len(unknown) > 10 else ''}; JSON and PNG must be of the same version, and the paths of "
            "--register in the order JSON, PNGs, images"
        )
    return present


def compact(labels: np.ndarray, segments: Sequence[Mapping[str, Any]]) -> PanopticLabels:
    """Renumber the segments to 1..S after a crop or a resize, and drop those without a pixel.

    Args:
        labels: (H, W) non-negative integers; each is 0 or the `id` of one of the segments.
        segments: as in `PanopticLabels`; their ids may have gaps.
    """
    return compact_with_boxes(labels, segments)[0]


def compact_with_boxes(labels: np.ndarray, segments: Sequence[Mapping[str, Any]]) -> tuple[PanopticLabels, np.ndarray]:
    """As `compact`, with the box of each segment: (S, 4) int32, x0 y0 x1 y1 in pixels, x1 and y1 exclusive."""
    starts, runs = pixel_runs(labels)
    present, boxes = _boxes(starts, runs, labels.shape[1])
    box_of = dict(zip(present.tolist(), boxes))
    kept = [segment for segment in segments if segment["id"] in box_of]
    numbered = [{**segment, "id": position} for position, segment in enumerate(kept, 1)]
    table: np.ndarray = np.zeros(int(present[-1]) + 1, dtype=_label_type(len(kept)))
    for position, segment in enumerate(kept, 1):
        table[segment["id"]] = position
    if labels.dtype != table.dtype or (table[present] != present).any():
        labels = np.take(table, labels)
    kept_boxes = np.array([box_of[segment["id"]] for segment in kept], dtype=np.int32).reshape(-1, 4)
    return PanopticLabels(labels, numbered), kept_boxes


def pixel_runs(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Start positions and labels of runs of equal pixels within a row; there are far fewer runs than pixels."""
    is_start: np.ndarray = np.ones(labels.shape, dtype=bool)
    np.not_equal(labels[:, 1:], labels[:, :-1], out=is_start[:, 1:])
    starts = np.flatnonzero(is_start)
    return starts, labels.reshape(-1)[starts]


def _boxes(starts: np.ndarray, runs: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The labels in the map, ascending, and the box of each; a run spans columns of one row."""
    rows, left = np.divmod(starts, width)
    right = np.append(left[1:], 0)
    right[right == 0] = width  # the next run starts the next row
    order = np.argsort(runs, kind="stable")  # a label's runs together, from the top row to the bottom one
    present, first = np.unique(runs[order], return_index=True)
    last = np.append(first[1:], len(order)) - 1
    columns = np.minimum.reduceat(left[order], first), np.maximum.reduceat(right[order], first)
    boxes = np.stack((columns[0], rows[order[first]], columns[1], rows[order[last]] + 1), axis=1)
    return present, boxes.astype(np.int32)


def _label_type(num_segments: int) -> type:
    return next(kind for kind in (np.uint8, np.int16, np.int32) if num_segments <= np.iinfo(kind).max)


def _read_ids(file_name: str) -> np.ndarray:
    """(H, W) uint32 ids of a panoptic PNG."""
    with open_image(file_name) as image:
        if image.mode not in ("RGB", "RGBA", "P"):
            raise UserError(
                f"{file_name}: expected a panoptic PNG in RGB (id = R + 256 G + 65536 B), found mode {image.mode!r}"
            )
        if is_deep(image, file_name):
            raise UserError(
                f"{file_name}: expected a panoptic PNG of 8 bits per channel, found 16 bits, and Pillow drops the "
                "lower 8; save it with 8 bits (uint8)"
            )
        # Four bytes a pixel, so that a pixel is one little-endian number with the id in its lower three.
        colors = image if image.mode == "RGB" else image.convert("RGB")
        pixels = cv2.cvtColor(np.asarray(colors), cv2.COLOR_RGB2RGBA)
    return pixels.view("<u4")[..., 0] & np.uint32(0xFFFFFF)
