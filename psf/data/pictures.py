"""What people are shown of an image, whatever its channels are."""

from __future__ import annotations

import numpy as np

from psf.data.images import read_image

__all__ = ["as_picture", "read_picture"]


def as_picture(image: np.ndarray, format: str) -> np.ndarray:
    """An image as a picture in colour.

    Of "BANDS" the first three are shown as red, green and blue; where there are fewer, the first in gray. Bands that
    are not uint8 are stretched, each from its minimum..maximum to 0..255.

    Args:
        image: (H, W, C), as `read_image` gives it.
        format: its INPUT.FORMAT.

    Returns:
        (H, W, 3) uint8 in RGB order, contiguous.
    """
    shown = image[..., :3] if image.shape[2] >= 3 else image[..., :1].repeat(3, axis=2)
    if format == "BGR":
        shown = shown[..., ::-1]
    if format == "BANDS" and shown.dtype != np.uint8:
        numbers = shown.astype(np.float64)
        low, high = numbers.min(axis=(0, 1)), numbers.max(axis=(0, 1))
        shown = ((numbers - low) / np.where(high > low, high - low, 1) * 255).round()
    return np.ascontiguousarray(shown, dtype=np.uint8)


def read_picture(path: str) -> np.ndarray:
    """Read an image file as an (H, W, 3) uint8 picture in RGB order; of a .npy array, what `as_picture` shows.

    Raises:
        ValueError: as `read_image`.
    """
    if path.lower().endswith(".npy"):
        return as_picture(read_image(path, "BANDS"), "BANDS")
    return read_image(path, "RGB")
