"""Masks as polygons, which have no holes."""

from __future__ import annotations

import cv2
import numpy as np
from scipy.spatial import cKDTree

from psf.output.drawing import find_box

__all__ = ["TOLERANCE", "join_outlines", "trace_outlines"]

TOLERANCE = 1.0  # pixels between a polygon and the contour that it simplifies
_SCALE = 2  # contours are found in a mask that is enlarged by it, so that they lie on the border of the pixels

Points = list[list[float]]


def trace_outlines(mask: np.ndarray) -> list[Points]:
    """A polygon [[x, y], ...] in pixels for each connected part of an (H, W) bool mask, without its holes."""
    box = find_box(mask)
    if box is None:
        return []
    top, left = box[0].start, box[1].start
    large = mask[box].astype(np.uint8).repeat(_SCALE, axis=0).repeat(_SCALE, axis=1)
    contours, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    polygons = []
    for contour in contours:
        corners = cv2.approxPolyDP(contour, TOLERANCE * _SCALE, closed=True)
        corners = contour if len(corners) < 3 else corners
        points = (corners[:, 0] + 0.5) / _SCALE  # centers of the small pixels at the border
        polygons.append([[round(left + x, 3), round(top + y, 3)] for x, y in points.tolist()])
    return polygons


def join_outlines(polygons: list[Points]) -> Points:
    """One polygon of several, for formats with one polygon per object.

    From the largest polygon a line leads to each other one at its nearest point, and back: the lines have no area.
    """
    if not polygons:
        return []
    main, *others = sorted(polygons, key=_extent, reverse=True)
    tree = cKDTree(main)
    detours: dict[int, list[Points]] = {}
    for polygon in others:
        distances, nearest = tree.query(polygon)
        start = int(distances.argmin())
        detours.setdefault(int(nearest[start]), []).append([*polygon[start:], *polygon[: start + 1]])
    joined = []
    for position, corner in enumerate(main):
        joined.append(corner)
        for detour in detours.get(position, []):
            joined += [*detour, corner]
    return joined


def _extent(polygon: Points) -> float:
    width, height = np.ptp(polygon, axis=0)
    return float(width * height)
