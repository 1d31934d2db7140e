"""Polygons and RLE in COCO's format, checked before pycocotools gets them: it trusts what it is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from psf.data.conversion_fields import are_coordinates, shorten

__all__ = ["check_polygons", "check_rle"]


def check_polygons(polygons: Sequence[Any], place: str) -> None:
    """Raise a ValueError that begins with `place`, unless these are [[x, y, x, y, ...], ...].

    Polygons of less than three points pass, but for a row of single points: [[x, y], [x, y], ...] is one polygon in a
    form that COCO's is not.
    """
    wrong = [one for one in polygons if not are_coordinates(one) or len(one) % 2]
    if not wrong and len(polygons) > 1 and all(len(one) == 2 for one in polygons):
        wrong = [polygons]
    if wrong:
        raise ValueError(
            f"{place}: 'segmentation' has {shorten(wrong[0])} for a polygon; expected a list of polygons, each "
            "[x, y, x, y, ...] of finite numbers"
        )


def check_rle(rle: Mapping[str, Any], size: tuple[int, int], place: str) -> None:
    """Raise a ValueError that begins with `place`, unless this is RLE of a mask of (height, width)."""
    if rle.get("size") != list(size):
        raise ValueError(f"{place} has a mask of {shorten(rle.get('size'))}, the image {list(size)} (height, width)")
    counts = rle.get("counts")
    if isinstance(counts, str):
        runs = _decode_runs(counts)
    else:
        runs = counts if isinstance(counts, list) and all(type(run) is int for run in counts) else [-1]
    if min(runs, default=-1) < 0 or sum(runs) != size[0] * size[1]:
        raise ValueError(
            f"{place}: the mask is damaged, its 'counts' are {shorten(counts)}; expected runs of {size[0] * size[1]} "
            "pixels together"
        )


def _decode_runs(text: str) -> list[int]:
    """Run lengths of compressed RLE: in digits of 5 bits, the lowest first; from the fourth on as differences."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        digit = ord(character) - 48
        if not 0 <= digit < 64:
            return []
        value |= (digit & 0x1F) << shift
        shift += 5
        if not digit & 0x20:  # the number's last digit
            if digit & 0x10:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs
