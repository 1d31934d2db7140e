"""Panoptic PNG and its segments -> one compact label map, the form in which psf carries the truth."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from detectron2.utils.logger import log_first_n

from psf.data.images import open_image

__all__ = ["PanopticLabels", "compact", "read_panoptic_ids", "read_panoptic_labels"]

_NEEDED_KEYS = {"id", "category_id", "isthing"}


class PanopticLabels(NamedTuple):
    """One image's truth.

    labels: (H, W) uint8 where the ids fit, else int32; 0 is void, k > 0 the segment whose `id` is k.
    segments: {"id": k, "category_id": int, "isthing": bool, "iscrowd": bool}, ids 1..S in order, each with a pixel.
    """

    labels: np.ndarray
    segments: list[dict[str, Any]]


def read_panoptic_labels(file_name: str, segments_info: Sequence[Mapping[str, Any]]) -> PanopticLabels:
    """Read a COCO panoptic PNG (id = R + 256 G + 65536 B, 0 is void) against the segments that its JSON lists.

    A segment without a pixel is dropped, with a warning for the first file where that happens.

    Args:
        file_name: path of the PNG.
        segments_info: Detectron2's: `id` as in the PNG, `category_id`, `isthing`, and `iscrowd` if it is one.

    Raises:
        ValueError: if the PNG is missing, unreadable or not in colour, has ids that the segments do not list, or if
            the list has an id twice or the id 0.
    """
    for segment in segments_info:
        if not segment.keys() >= _NEEDED_KEYS:
            raise ValueError(
                f"{file_name}: a segment of segments_info lacks {_NEEDED_KEYS - segment.keys()}: {segment}"
            )
    known = np.array([segment["id"] for segment in segments_info], dtype=np.int64)
    order = np.argsort(known)
    known = np.concatenate(([0], known[order]))
    if (np.diff(known) <= 0).any():
        raise ValueError(f"{file_name}: segments_info has an id below 1 or one id twice: {sorted(known[1:].tolist())}")

    ids = read_panoptic_ids(file_name, known)
    starts, runs = _runs(ids)
    found = np.searchsorted(known, runs)
    labels = np.repeat(found.astype(_label_type(len(order))), np.diff(starts, append=ids.size)).reshape(ids.shape)
    segments = [
        {
            "id": position,
            "category_id": int(segments_info[index]["category_id"]),
            "isthing": bool(segments_info[index]["isthing"]),
            "iscrowd": bool(segments_info[index].get("iscrowd", False)),
        }
        for position, index in enumerate(order, 1)
    ]
    result = compact(labels, segments)
    if len(result.segments) < len(segments):
        absent = sorted(set(known[1:].tolist()) - set(runs.tolist()))
        message = f"{file_name}: segments {absent[:10]} of the JSON have no pixel in the PNG and are dropped"
        log_first_n(logging.WARNING, message, key="caller", name=__name__)
    return result


def read_panoptic_ids(file_name: str, known: Iterable[int]) -> np.ndarray:
    """The (H, W) uint32 ids of a COCO panoptic PNG; 0 is void.

    Raises:
        ValueError: if the PNG is missing, unreadable or not in colour, or has ids other than 0 and those in `known`.
    """
    ids = _read_ids(file_name)
    unknown = np.setdiff1d(_runs(ids)[1], [0, *known])
    if len(unknown):
        raise ValueError(
            f"{file_name}: the PNG has ids that segments_info does not list: {unknown[:10].tolist()}"
            f"{' ...' if len(unknown) > 10 else ''}; JSON and PNG must be of the same version"
        )
    return ids


def _runs(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where runs of equal pixels start, row by row, and their ids: far fewer than pixels."""
    flat = ids.reshape(-1)
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    return starts, flat[starts]


def compact(labels: np.ndarray, segments: Sequence[Mapping[str, Any]]) -> PanopticLabels:
    """Renumber to 1..S what a crop or a resize left, and drop the segments that vanished.

    Args:
        labels: (H, W) non-negative integers; each is 0 or the `id` of one of the segments.
        segments: as in `PanopticLabels`; their ids may have gaps.
    """
    is_present = np.bincount(labels.reshape(-1), minlength=1) > 0
    kept = [segment for segment in segments if segment["id"] < len(is_present) and is_present[segment["id"]]]
    table: np.ndarray = np.zeros(len(is_present), dtype=_label_type(len(kept)))
    for position, segment in enumerate(kept, 1):
        table[segment["id"]] = position
    return PanopticLabels(table[labels], [{**segment, "id": position} for position, segment in enumerate(kept, 1)])


def _label_type(num_segments: int) -> type:
    return np.uint8 if num_segments <= np.iinfo(np.uint8).max else np.int32


def _read_ids(file_name: str) -> np.ndarray:
    """(H, W) uint32 ids of a panoptic PNG."""
    with open_image(file_name) as image:
        if image.mode not in ("RGB", "RGBA", "P"):
            raise ValueError(
                f"{file_name}: expected a panoptic PNG in RGB (id = R + 256 G + 65536 B), found mode {image.mode!r}"
            )
        # Four bytes a pixel, so that a pixel is one little-endian number with the id in its lower three.
        pixels = np.ascontiguousarray(image.convert("RGBA"))
    return pixels.view("<u4")[..., 0] & np.uint32(0xFFFFFF)
