"""Letters in pictures, in the font that matplotlib brings along."""

from __future__ import annotations

import functools
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ["draw_text", "font_size_of", "text_size"]

MIN_FONT_SIZE = 11  # pixels; smaller letters cannot be read


def font_size_of(size: tuple[int, int]) -> int:
    """Pixels of the letters in an image of this height and width."""
    return max(MIN_FONT_SIZE, round((size[0] * size[1]) ** 0.5 / 50))


def text_size(text: str, font_size: int) -> tuple[int, int]:
    """Height and width of a line of text in pixels; the height is that of any line."""
    ascent, descent = _font(font_size).getmetrics()
    return ascent + descent, int(np.ceil(_font(font_size).getlength(text)))


def draw_text(
    canvas: np.ndarray, text: str, top: int, left: int, font_size: int, color: tuple[int, int, int] = (0, 0, 0)
) -> None:
    """Write a line into (H, W, 3) uint8, in place; what lies outside is cut off."""
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
