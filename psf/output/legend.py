"""A legend: colour, name and number of segments of each class in a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from psf.output.colors import Color
from psf.output.drawing import Region, draw_text, text_size

__all__ = ["LegendEntry", "add_legend", "draw_legend", "legend_entries"]

WHITE, BLACK = 255, (0, 0, 0)
MAX_NAME = 40  # letters


class LegendEntry(NamedTuple):
    """A class in a picture."""

    text: str
    color: Color


def legend_entries(regions: Sequence[Region]) -> list[LegendEntry]:
    """The classes of the segments: things, most frequent first, with their number; then stuff, largest first."""
    counts: dict[tuple[bool, str], int] = {}
    areas: dict[tuple[bool, str], int] = {}
    colors: dict[tuple[bool, str], Color] = {}
    for region in regions:
        key = (region.is_thing, region.name)
        counts[key] = counts.get(key, 0) + 1
        areas[key] = areas.get(key, 0) + int(np.count_nonzero(region.mask))
        colors[key] = region.color
    things = sorted((key for key in counts if key[0]), key=lambda key: (-counts[key], -areas[key]))
    stuff = sorted((key for key in counts if not key[0]), key=lambda key: -areas[key])
    entries = [LegendEntry(f"{_short(key[1])} x {counts[key]}", colors[key]) for key in things]
    return entries + [LegendEntry(_short(key[1]), colors[key]) for key in stuff]


def draw_legend(entries: Sequence[LegendEntry], width: int, font_size: int, max_lines: int | None = None) -> np.ndarray:
    """Draw entries in lines on a white background.

    Args:
        entries: in the order of drawing.
        width: in pixels; a longer entry is cut off.
        font_size: in pixels.
        max_lines: "+ N more" replaces entries beyond these lines; None: no limit.

    Returns:
        (height, width, 3) uint8; the height is 0 without entries.
    """
    line_height, gap = text_size("", font_size)[0] + 4, font_size // 2
    widths = [font_size + gap + text_size(one.text, font_size)[1] + 2 * gap for one in entries]
    places: list[tuple[int, int]] = []  # line and left edge of each entry
    line, left = 0, gap
    for one in widths:
        if left > gap and left + one > width:
            line, left = line + 1, gap
        places.append((line, left))
        left += one
    shown = len(entries)
    if max_lines is not None and entries and places[-1][0] >= max_lines:
        reserved = text_size(f"+ {len(entries)} more", font_size)[1]
        is_shown = [
            place < max_lines - 1 or (place == max_lines - 1 and start + one + reserved <= width)
            for (place, start), one in zip(places, widths, strict=True)
        ]
        shown = is_shown.index(False)
    num_lines = places[shown - 1][0] + 1 if shown else int(bool(entries))
    legend = np.full((line_height * num_lines + (gap if num_lines else 0), width, 3), WHITE, dtype=np.uint8)
    for entry, (line, left) in zip(entries[:shown], places, strict=False):
        top = gap // 2 + line * line_height
        middle = top + (line_height - font_size) // 2
        legend[middle : middle + font_size, left : left + font_size] = entry.color
        draw_text(legend, entry.text, top + 2, left + font_size + gap, font_size, BLACK)
    if shown < len(entries):
        line, left = places[shown - 1] if shown else (0, gap)
        left += widths[shown - 1] if shown else 0
        draw_text(legend, f"+ {len(entries) - shown} more", gap // 2 + line * line_height + 2, left, font_size, BLACK)
    return legend


def add_legend(picture: np.ndarray, regions: Sequence[Region], font_size: int) -> np.ndarray:
    """Add a legend below a picture (H, W, 3) uint8; narrow pictures are widened, so that the longest name fits.

    A picture without regions is returned unchanged.
    """
    entries = legend_entries(regions)
    if not entries:
        return picture
    longest = max(text_size(one.text, font_size)[1] for one in entries) + 3 * font_size
    width = max(picture.shape[1], longest)
    picture = np.pad(picture, ((0, 0), (0, width - picture.shape[1]), (0, 0)), constant_values=WHITE)
    return np.concatenate((picture, draw_legend(entries, width, font_size)))


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"
