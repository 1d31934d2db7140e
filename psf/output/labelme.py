"""Segments as shapes of labelme's JSON."""

from __future__ import annotations

import base64
import io
from typing import Any

import cv2
import numpy as np
from PIL import Image

from psf.output.drawing import find_box

__all__ = ["labelme_shapes"]

TOLERANCE = 1.0  # pixels between a polygon and the contour that it simplifies
_SCALE = 2  # contours are found in a mask that is enlarged by it, so that they lie on the border of the pixels


def labelme_shapes(mask: np.ndarray, label: str, group_id: int, *, exact: bool) -> list[dict[str, Any]]:
    """The shapes of one segment.

    Args:
        mask: (H, W) bool.
        label: name of the class.
        group_id: joins the shapes of the segment.
        exact: False: a polygon for each connected part, without its holes. True: one shape "mask".

    Returns:
        [] for an empty mask.
    """
    box = find_box(mask)
    if box is None:
        return []
    part, (top, left) = mask[box], (box[0].start, box[1].start)
    common = {"label": label, "group_id": group_id, "description": "", "flags": {}}
    if exact:
        file = io.BytesIO()
        Image.fromarray(part.astype(np.uint8) * 255).save(file, format="PNG")
        points = [[left, top], [box[1].stop - 1, box[0].stop - 1]]
        return [{**common, "points": points, "shape_type": "mask", "mask": base64.b64encode(file.getvalue()).decode()}]
    return [{**common, "points": one, "shape_type": "polygon", "mask": None} for one in _polygons(part, left, top)]


def _polygons(part: np.ndarray, left: int, top: int) -> list[list[list[float]]]:
    """Outlines of the connected parts, as corners [x, y] in pixels of the image."""
    large = part.astype(np.uint8).repeat(_SCALE, axis=0).repeat(_SCALE, axis=1)
    contours, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    polygons = []
    for contour in contours:
        corners = cv2.approxPolyDP(contour, TOLERANCE * _SCALE, closed=True)
        corners = contour if len(corners) < 3 else corners
        points = (corners[:, 0] + 0.5) / _SCALE  # centers of the small pixels at the border
        polygons.append([[round(left + x, 3), round(top + y, 3)] for x, y in points.tolist()])
    return polygons
