"""Image files of any common kind -> (H, W, 3) uint8."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageOps

__all__ = ["in_format", "open_image", "read_image"]

# What Pillow raises, while it opens or decodes, on files that are cut off, damaged or not images.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def read_image(path: str, format: str = "BGR") -> np.ndarray:
    """Read an image as 8-bit colour, turned as its EXIF orientation says.

    Gray, palette, 1-bit and CMYK images become colour. Transparency is dropped, not composited (as in Detectron2).
    16-bit gray is rescaled from 0..65535, 32-bit integers from 0..max(65535, their maximum); floating-point images
    from 0..1 if they lie in it, as they are if they lie in 0..255, else from their minimum..maximum.

    Args:
        path: anything that Detectron2's PathManager opens.
        format: order of the channels, "BGR" or "RGB" (INPUT.FORMAT).

    Returns:
        (H, W, 3) uint8, contiguous and writable.

    Raises:
        ValueError: naming the file, if it is missing, empty, corrupt or holds a value that is not finite; or naming
            INPUT.FORMAT, if that is neither.
    """
    with open_image(path) as image:
        image = _upright(image, path)
        if image.mode == "F" or image.mode.startswith("I"):
            image = Image.fromarray(_to_8_bit(np.asarray(image), path))
        # A palette may hold its transparency as bytes, which Pillow turns into RGBA alone without a warning.
        pixels = np.asarray(image.convert("RGBA" if image.mode == "P" else "RGB"))[..., :3]
    return in_format(pixels, format)


def in_format(pixels: np.ndarray, format: str) -> np.ndarray:
    """(H, W, 3) in RGB -> a copy in "RGB" or "BGR"; a ValueError that names INPUT.FORMAT for any other format."""
    if format not in ("BGR", "RGB"):
        raise ValueError(f"INPUT.FORMAT is {format!r}, expected 'BGR' or 'RGB'")
    return (pixels if format == "RGB" else pixels[..., ::-1]).copy()


@contextmanager
def open_image(path: str) -> Iterator[Image.Image]:
    """Open and decode an image file with Pillow, or raise a ValueError that names it."""
    try:
        with PathManager.open(path, "rb") as file:
            image = Image.open(file)
            image.load()
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such image file") from error
    except _DECODING_ERRORS as error:
        raise ValueError(f"{path}: empty, corrupt or not an image ({error})") from error
    yield image


def _upright(image: Image.Image, path: str) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except (*_DECODING_ERRORS, KeyError, TypeError):
        # Cameras write broken EXIF blocks; the pixels are good all the same.
        logging.getLogger(__name__).warning("%s: broken EXIF block, orientation ignored", path)
        return image


def _to_8_bit(values: np.ndarray, path: str) -> np.ndarray:
    """(H, W) integers or floats -> uint8, over the range that `read_image` documents."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ValueError(f"{path}: the image holds values that are not finite")
    if values.dtype.kind in "iu":
        low, high = 0.0, max(high, 65535.0)
    elif low >= 0 and high <= 255:
        low, high = 0.0, 1.0 if high <= 1 else 255.0
    scaled = (values.astype(np.float64) - low) * (255.0 / max(high - low, 1e-12))
    return scaled.clip(0, 255).round().astype(np.uint8)
