"""Draw segments and text over an image."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from psf.output.colors import Box, Color, contrasting, segment_levels, with_level

__all__ = ["Region", "draw_regions", "draw_text", "find_box", "font_size_of", "text_size"]

FILL_OPACITY = 0.45
LABEL_OPACITY = 0.6  # of the dark box behind the letters
LABEL_MARGIN = 2  # pixels around the letters
MAX_HIDDEN = 0.5  # largest area of a label, as a share of its segment's area
INSIDE_SHARE = 0.6  # least share of a label's area that lies on its own segment
SIDE_OF_ONE_PIXEL = 800  # longer side of an image whose contours are one pixel wide


class Region(NamedTuple):
    """One segment to draw: P pixels of one class."""

    name: str
    color: Color  # of the class
    is_thing: bool
    score: float | None  # shown with things; None: there is none
    box: Box  # rows and columns that enclose the segment
    mask: np.ndarray  # bool, of the box's size

    @property
    def labels(self) -> list[str]:
        """Label texts, the most informative first."""
        if self.is_thing and self.score is not None:
            return [f"{self.name} {100 * self.score:.0f}%", self.name]
        return [self.name]


def find_box(mask: np.ndarray) -> Box | None:
    """Rows and columns that enclose the pixels of an (H, W) bool mask; None if there are none."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def draw_regions(image_rgb: np.ndarray, regions: Sequence[Region]) -> np.ndarray:
    """Fill each segment semi-transparently, draw its contour, and write its name if the name hides little.

    Neighbouring segments of a class differ in brightness. A name is written only if its box covers at most half of its
    segment's area, lies mostly on the segment, and does not overlap another name. Larger segments are drawn first, so
    that smaller segments stay visible.

    Args:
        image_rgb: (H, W, 3) uint8; it is not changed.
        regions: may overlap.

    Returns:
        (H, W, 3) uint8.
    """
    canvas = np.array(image_rgb)
    size = (canvas.shape[0], canvas.shape[1])
    levels = segment_levels([(one.name, one.is_thing) for one in regions], [one.box for one in regions], size)
    areas = [int(np.count_nonzero(one.mask)) for one in regions]
    order = sorted(range(len(regions)), key=lambda i: -areas[i])
    for i in order:
        if areas[i]:
            _draw_region(canvas, regions[i], with_level(regions[i].color, levels[i]))
    is_taken = np.zeros(size, dtype=bool)
    for i in order:
        if areas[i]:
            _draw_label(canvas, is_taken, regions[i], areas[i])
    return canvas


def _draw_region(canvas: np.ndarray, region: Region, color: Color) -> None:
    part = canvas[region.box]
    pixels = part[region.mask]
    filled = ((1 - FILL_OPACITY) * pixels + FILL_OPACITY * np.array(color)).round().astype(np.uint8)
    part[region.mask] = filled
    height, width = canvas.shape[:2]
    # Not the longer side of a narrow image: drawing takes the thickness times the length, which could be hours.
    side = min(max(height, width), 4 * min(height, width))
    thickness = max(1, round(side / SIDE_OF_ONE_PIXEL))
    contours, _ = cv2.findContours(region.mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    line = np.zeros(region.mask.shape, dtype=np.uint8)
    cv2.drawContours(line, contours, -1, 1, thickness)
    part[(line > 0) & region.mask] = contrasting(color, filled)


def _draw_label(canvas: np.ndarray, is_taken: np.ndarray, region: Region, area: int) -> None:
    """Write the first of the region's label texts that fits."""
    large = font_size_of((canvas.shape[0], canvas.shape[1]))
    row, column = _innermost(region.mask & ~is_taken[region.box])
    for font_size in sorted({large, max(MIN_FONT_SIZE, round(0.75 * large))}, reverse=True):
        for text in region.labels:
            height, width = (side + 2 * LABEL_MARGIN for side in text_size(text, font_size))
            if height * width > MAX_HIDDEN * area or height > canvas.shape[0] or width > canvas.shape[1]:
                continue
            top = min(max(region.box[0].start + row - height // 2, 0), canvas.shape[0] - height)
            left = min(max(region.box[1].start + column - width // 2, 0), canvas.shape[1] - width)
            box = np.s_[top : top + height, left : left + width]
            if is_taken[box].any() or _pixels_inside(region, top, left, height, width) < INSIDE_SHARE * height * width:
                continue
            is_taken[box] = True
            canvas[box] = ((1 - LABEL_OPACITY) * canvas[box]).round().astype(np.uint8)
            draw_text(canvas, text, top + LABEL_MARGIN, left + LABEL_MARGIN, font_size, (255, 255, 255))
            return


def _innermost(mask: np.ndarray) -> tuple[int, int]:
    """Row and column of a pixel that is far from the mask's border."""
    distance = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    row, column = np.unravel_index(int(distance.argmax()), mask.shape)
    return int(row), int(column)


def _pixels_inside(region: Region, top: int, left: int, height: int, width: int) -> int:
    """Number of pixels of an image rectangle that are in the region."""
    rows, columns = region.box
    part = region.mask[
        max(top - rows.start, 0) : max(top + height - rows.start, 0),
        max(left - columns.start, 0) : max(left + width - columns.start, 0),
    ]
    return int(np.count_nonzero(part))


MIN_FONT_SIZE = 11  # pixels; smaller letters cannot be read


def font_size_of(size: tuple[int, int]) -> int:
    """Font size in pixels for an image of this height and width."""
    return max(MIN_FONT_SIZE, round((size[0] * size[1]) ** 0.5 / 50))


def text_size(text: str, font_size: int) -> tuple[int, int]:
    """Height and width of a line of text in pixels; the height is that of any line."""
    ascent, descent = _font(font_size).getmetrics()
    return ascent + descent, int(np.ceil(_font(font_size).getlength(text)))


def draw_text(
    canvas: np.ndarray, text: str, top: int, left: int, font_size: int, color: tuple[int, int, int] = (0, 0, 0)
) -> None:
    """Write a line of text on (H, W, 3) uint8, in place; text outside the canvas is cut off."""
    height, width = text_size(text, font_size)
    rows = slice(max(top, 0), min(top + height, canvas.shape[0]))
    columns = slice(max(left, 0), min(left + width, canvas.shape[1]))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return
    part = Image.fromarray(canvas[rows, columns])
    ImageDraw.Draw(part).text((left - columns.start, top - rows.start), text, fill=color, font=_font(font_size))
    canvas[rows, columns] = np.asarray(part)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)
