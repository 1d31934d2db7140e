"""Masks as polygons: holes are joined to the outline by lines without area."""

from __future__ import annotations

import cv2
import numpy as np
from scipy.spatial import cKDTree

from psf.output.drawing import find_box

__all__ = ["join_outlines", "trace_outlines"]

TOLERANCE = 0.7  # pixels between a polygon and the contour that it simplifies
# Contours are found in a mask that is enlarged by it, at the centers of the small pixels at its border: a quarter of a
# pixel inside of the mask.
_SCALE = 2

Points = list[list[float]]


def trace_outlines(mask: np.ndarray) -> list[Points]:
    """A polygon [[x, y], ...] in pixels for each connected part of an (H, W) bool mask, with its holes.

    Simplified by up to TOLERANCE. Apart from the simplification, a pixel belongs to the mask if its center is inside.
    """
    box = find_box(mask)
    if box is None:
        return []
    large = mask[box].astype(np.uint8).repeat(_SCALE, axis=0).repeat(_SCALE, axis=1)
    contours, hierarchy = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    corner = np.array([box[1].start, box[0].start])
    polygons = [_simplify(contour, corner) for contour in contours]
    parents = hierarchy[0, :, 3].tolist()  # -1 for an outline, the number of its outline for a hole
    holes: dict[int, list[Points]] = {}
    for polygon, parent in zip(polygons, parents, strict=True):
        holes.setdefault(parent, []).append(polygon)
    return [_join(one, holes.get(number, [])) for number, one in enumerate(polygons) if parents[number] < 0]


def _simplify(contour: np.ndarray, corner: np.ndarray) -> Points:
    """(P, 1, 2) pixels of an enlarged mask, whose first pixel is `corner` in the image."""
    corners = cv2.approxPolyDP(contour, TOLERANCE * _SCALE, closed=True)
    corners = contour if len(corners) < 3 else corners
    points = corner + (corners[:, 0] + 0.5) / _SCALE  # centers of the small pixels at the border
    simplified: Points = points.round(3).tolist()
    return simplified


def join_outlines(polygons: list[Points]) -> Points:
    """One polygon of several, for formats with one polygon per object."""
    if not polygons:
        return []
    main, *others = sorted(polygons, key=_extent, reverse=True)
    return _join(main, others)


def _join(main: Points, others: list[Points]) -> Points:
    """Join polygons to one by a line to the nearest point of each, and back: the lines have no area.

    Polygons inside of it become holes: fillings by parity count them twice.
    """
    if not others:
        return main
    tree = cKDTree(main)
    detours: dict[int, list[Points]] = {}
    for polygon in others:
        distances, nearest = tree.query(polygon)
        start = int(distances.argmin())
        detours.setdefault(int(nearest[start]), []).append([*polygon[start:], *polygon[: start + 1]])
    joined = []
    for position, point in enumerate(main):
        joined.append(point)
        for detour in detours.get(position, []):
            joined += [*detour, point]
    return joined


def _extent(polygon: Points) -> float:
    width, height = np.ptp(polygon, axis=0)
    return float(width * height)
