"""A small picture of an image under its panoptic PNG, whatever the JSON says of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image

from psf.data.panoptic_truth import measure_panoptic_png, read_panoptic_ids
from psf.data.pictures import read_picture

__all__ = ["UNKNOWN", "draw_sample"]

_MAX_SIDE = 320  # pixels
_OPACITY = 0.55
_VOID, UNKNOWN, _BORDER = (0, 0, 0), (255, 0, 255), (255, 255, 255)


def draw_sample(
    image_file: str, png_file: str, colors: Mapping[int, tuple[int, int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """The image alone, and under its segments with white borders; (h, w, 3) uint8 RGB, 320 pixels at most.

    Args:
        colors: RGB of each id of the PNG; others are magenta, void is black.

    Raises:
        ValueError: if a file is missing or damaged.
    """
    picture = read_picture(image_file)
    ids = read_panoptic_ids(png_file, measure_panoptic_png(png_file).ids.tolist())
    scale = min(1.0, _MAX_SIDE / max(picture.shape))
    height, width = (max(round(side * scale), 1) for side in picture.shape[:2])
    small = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))
    rows, columns = (
        (np.arange(side) * whole // side).astype(int) for side, whole in zip((height, width), ids.shape)
    )  # of the PNG, whose size may be another
    ids = ids[np.ix_(rows, columns)]

    present, inverse = np.unique(ids, return_inverse=True)
    table = np.array([{0: _VOID, **colors}.get(number, UNKNOWN) for number in present.tolist()])
    drawn = (1 - _OPACITY) * small + _OPACITY * table[inverse.reshape(ids.shape)]
    is_border: np.ndarray = np.zeros(ids.shape, dtype=bool)
    is_border[:-1] |= ids[:-1] != ids[1:]
    is_border[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    drawn[is_border] = _BORDER
    return small, drawn.round().astype(np.uint8)
