"""Compose masks that may overlap into one label map, by an overlap policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from psf.errors import UserError

__all__ = [
    "OVERLAP_POLICIES",
    "Region",
    "check_outlines",
    "compose",
    "ellipse_outline",
    "encode_mask",
    "join_regions",
    "paste",
    "rectangle_outline",
    "region_of_polygons",
    "rotate_outline",
]

OVERLAP_POLICIES = ("smaller-on-top", "later-on-top", "error")

# Pixels; pycocotools takes 80 bytes for each. Far more than the most ragged region of a large image has.
_LONGEST_OUTLINE = 10_000_000
_ELLIPSE_POINTS = 64


class Region(NamedTuple):
    """A mask before overlaps are resolved.

    rle: of pycocotools, compressed.
    category_id: its class.
    is_crowd: whether it covers a group of things.
    """

    rle: dict[str, Any]
    category_id: int
    is_crowd: bool = False


def check_outlines(polygons: Sequence[Sequence[float]], place: str) -> None:
    """Raise a UserError that begins with `place` if polygons [x, y, x, y, ...] take too much memory to fill."""
    # The bound is quick, and nearly always enough.
    if sum(len(polygon) * (max(polygon) - min(polygon)) for polygon in polygons if polygon) <= _LONGEST_OUTLINE:
        return
    corners = [np.array(polygon, dtype=np.float64).reshape(-1, 2) for polygon in polygons if polygon]
    length = sum(float(np.abs(one - np.roll(one, 1, axis=0)).max(axis=1).sum()) for one in corners)
    if length > _LONGEST_OUTLINE:
        raise UserError(
            f"{place}: the outline has a length of {length:.0f} pixels, expected at most {_LONGEST_OUTLINE}; correct "
            "points that are far outside the image, or remove repeated ones"
        )


def region_of_polygons(
    polygons: Sequence[Sequence[float]], size: tuple[int, int], category_id: int, is_crowd: bool = False
) -> Region | None:
    """The union of polygons [x, y, x, y, ...] in an image of (height, width); None if no polygon has three points."""
    real = [list(polygon) for polygon in polygons if len(polygon) >= 6]
    if not real:
        return None
    return Region(coco_mask.merge(coco_mask.frPyObjects(real, *size)), category_id, is_crowd)


def rectangle_outline(x: float, y: float, width: float, height: float) -> np.ndarray:
    """(4, 2) corners of a rectangle from its upper left corner."""
    return np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)])


def ellipse_outline(x: float, y: float, radius_x: float, radius_y: float) -> np.ndarray:
    """(64, 2) points of an ellipse around its center."""
    angles = np.linspace(0, 2 * np.pi, _ELLIPSE_POINTS, endpoint=False)
    return np.array([x, y]) + np.array([radius_x, radius_y]) * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def rotate_outline(points: np.ndarray, degrees: float, center: tuple[float, float]) -> np.ndarray:
    """Turn (P, 2) points clockwise, as seen on the screen, around a center."""
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turned: np.ndarray = (points - center) @ np.array([(cosine, sine), (-sine, cosine)]) + center
    return turned


def join_regions(regions: Iterable[tuple[Hashable, Region]]) -> list[Region]:
    """The union of the regions that have one key, for each key in order; None: a region of its own."""
    grouped: dict[Hashable, list[Region]] = {}
    for position, (key, region) in enumerate(regions):
        grouped.setdefault(("", position) if key is None else ("key", key), []).append(region)
    return [group[0]._replace(rle=coco_mask.merge([one.rle for one in group])) for group in grouped.values()]


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """RLE of an (H, W) mask of 0 and 1, or bool."""
    rle: dict[str, Any] = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return rle


def paste(whole: np.ndarray, part: np.ndarray, top: int, left: int) -> None:
    """Write a part into a mask, in place, at a position that may be outside: what is outside is dropped."""
    y, x = max(top, 0), max(left, 0)
    part = part[y - top :, x - left :][: max(whole.shape[0] - y, 0), : max(whole.shape[1] - x, 0)]
    whole[y : y + part.shape[0], x : x + part.shape[1]] = part


def compose(
    size: tuple[int, int],
    regions: Sequence[Region],
    *,
    overlap: str,
    stuff_ids: Collection[int],
    background: np.ndarray | None = None,
) -> tuple[np.ndarray, list[dict[str, Any]], Counter[str]]:
    """Paint the background's classes, then crowds, then the other regions in the order of the policy.

    All regions of a stuff class, and its background, become one segment; every other region is a segment of its own.

    Args:
        size: (height, width).
        overlap: which region gets the common pixels: "smaller-on-top": the smaller region; "later-on-top": the later
            region in `regions`; "error": overlaps are not allowed. Crowds and the background are always below.
        stuff_ids: category ids of stuff.
        background: (H, W) category ids of stuff; negative is void.

    Returns:
        (H, W) int32 labels, the segments as in `Drawing`, and notes.

    Raises:
        UserError: if overlap is "error" and two regions overlap; the caller adds the image to the message.
    """
    canvas = _Canvas(size, stuff_ids)
    if background is not None:
        for category_id in np.unique(background[background >= 0]).tolist():
            canvas.labels[background == category_id] = canvas.segment_of(category_id, is_crowd=False)
    notes = Counter[str]()
    taken: np.ndarray = np.zeros(size, dtype=bool)  # by regions that are not crowds
    for region in _in_painting_order(regions, overlap):
        mask = _decode(region)
        is_crowd = region.is_crowd and region.category_id not in stuff_ids
        own = canvas.segment_of(region.category_id, is_crowd)
        contested = mask & taken & (canvas.labels != own)
        if contested.any():
            if overlap == "error":
                other = canvas.segments[canvas.labels[contested][0] - 1]
                raise UserError(
                    f"a region of category {region.category_id} and one of category {other['category_id']} overlap in "
                    f"{contested.sum()} pixels; correct them, or choose --overlap {' or '.join(OVERLAP_POLICIES[:2])}"
                )
            notes["overlapping regions"] += 1
        canvas.labels[mask] = own
        if not is_crowd:
            taken |= mask
    hidden = len(canvas.segments) - len(np.setdiff1d(canvas.labels, [0]))
    if hidden:
        notes["segments without a visible pixel, dropped"] = hidden
    return canvas.labels, canvas.segments, notes


def _decode(region: Region) -> np.ndarray:
    """(H, W) bool."""
    try:
        return np.asarray(coco_mask.decode(region.rle), dtype=bool)
    except ValueError as error:
        raise UserError(f"the mask of a region of category {region.category_id} is damaged ({error})") from error


class _Canvas:
    """Labels, initially void, and their segments, as in `Drawing`, while regions are painted."""

    def __init__(self, size: tuple[int, int], stuff_ids: Collection[int]) -> None:
        self.labels: np.ndarray = np.zeros(size, dtype=np.int32)
        self.segments: list[dict[str, Any]] = []
        self._stuff_ids = stuff_ids
        self._number_of: dict[int, int] = {}  # stuff class -> its segment

    def segment_of(self, category_id: int, is_crowd: bool) -> int:
        """The label of a new segment, or of the existing segment of a stuff class."""
        if category_id in self._number_of:
            return self._number_of[category_id]
        self.segments.append({"id": len(self.segments) + 1, "category_id": category_id, "iscrowd": is_crowd})
        if category_id in self._stuff_ids:
            self._number_of[category_id] = len(self.segments)
        return len(self.segments)


def _in_painting_order(regions: Sequence[Region], overlap: str) -> list[Region]:
    """Sort regions by the policy; later regions are on top."""
    if overlap not in OVERLAP_POLICIES:
        raise UserError(f"--overlap is {overlap!r}, expected one of: {', '.join(OVERLAP_POLICIES)}")
    ordered = list(regions)
    if overlap == "smaller-on-top":
        ordered.sort(key=lambda region: -int(coco_mask.area(region.rle)))
    return sorted(ordered, key=lambda region: not region.is_crowd)
