"""Colours of classes, and brightness levels for neighbouring segments of a class."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.utils.colormap import colormap

__all__ = ["Box", "Color", "class_color", "contrasting", "segment_levels", "with_level"]

Color = tuple[int, int, int]  # RGB, 0 to 255
Box = tuple[slice, slice]  # rows and columns

NUM_LEVELS = 5  # of brightness, for segments of one class; four are enough for a planar map
LEVEL_RANGE = 0.5  # difference in lightness (0 to 1) between the darkest and the brightest level
DARKEST, BRIGHTEST = 0.2, 0.85
# Largest distance between the boxes of neighbours, as a share of the image's longer side.
NEIGHBOUR_GAP = 0.02


def class_color(metadata: Any, category: int, is_thing: bool) -> Color:
    """The colour of a class in the metadata, or else in Detectron2's palette."""
    colors = getattr(metadata, "thing_colors" if is_thing else "stuff_colors", [])
    if category < len(colors):
        color = colors[category]
    else:
        palette = colormap(rgb=True)
        color = palette[category % len(palette)]
    red, green, blue = (int(value) for value in color)
    return red, green, blue


def with_level(color: Color, level: int) -> Color:
    """The colour itself at level 0; four other brightnesses of the same hue at levels 1 to 4."""
    if level == 0:
        return color
    hue, lightness, saturation = colorsys.rgb_to_hls(*(value / 255 for value in color))
    low = min(max(lightness - LEVEL_RANGE / 2, DARKEST), BRIGHTEST - LEVEL_RANGE)
    choices = [low + LEVEL_RANGE * i / (NUM_LEVELS - 1) for i in range(NUM_LEVELS)]
    choices.sort(key=lambda one: -abs(one - lightness))  # farthest from level 0 first; the nearest is not used
    red, green, blue = (round(255 * value) for value in colorsys.hls_to_rgb(hue, choices[level - 1], saturation))
    return red, green, blue


def segment_levels(classes: Sequence[Any], boxes: Sequence[Box], size: tuple[int, int]) -> list[int]:
    """Choose a brightness level for each segment, so that neighbours of a class differ as far as five levels allow.

    Args:
        classes: N class keys; equal keys are the same class.
        boxes: N rows and columns that enclose the segments.
        size: height and width of the image.
    """
    gap = NEIGHBOUR_GAP * max(size)
    extents = np.array([[r.start, c.start, r.stop, c.stop] for r, c in boxes], dtype=float).reshape(-1, 4)
    levels: list[int] = []
    for i, (top, left, bottom, right) in enumerate(extents):
        others = extents[:i]
        is_near = (
            (others[:, 0] - gap < bottom)
            & (top < others[:, 2] + gap)
            & (others[:, 1] - gap < right)
            & (left < others[:, 3] + gap)
        )
        uses = [0] * NUM_LEVELS
        for j in np.flatnonzero(is_near).tolist():
            if classes[j] == classes[i]:
                uses[levels[j]] += 1
        levels.append(uses.index(min(uses)))
    return levels


def contrasting(color: Color, background: np.ndarray) -> Color:
    """A colour's lighter version for (P, 3) dark pixels, its darker one for bright pixels."""
    is_dark = float(np.mean(background @ np.array([0.299, 0.587, 0.114]))) < 128
    red, green, blue = (round(0.5 * value + (127.5 if is_dark else 0)) for value in color)
    return red, green, blue
