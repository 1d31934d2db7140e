"""Image files of any common kind -> (H, W, C) in INPUT.FORMAT."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageOps

from psf.data.bands import as_numbers, image_bands, is_deep, load_array, opencv_bands

__all__ = ["in_format", "open_image", "read_image"]

# What Pillow raises, while it opens or decodes, on files that are cut off, damaged or not images.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def read_image(path: str, format: str = "BGR", num_channels: int | None = None) -> np.ndarray:
    """Read an image in INPUT.FORMAT, turned as its EXIF orientation says.

    "BGR", "RGB" and "L" (gray) have 8 bits: gray, palette, 1-bit and CMYK images become colour, colour becomes gray.
    Transparency is dropped, not composited (as in Detectron2). 16-bit gray is rescaled from 0..65535, 32-bit integers
    from 0..max(65535, their maximum); floating-point images from 0..1 if they lie in it, as they are if they lie in
    0..255, else from their minimum..maximum.

    "BANDS" are the file's channels in their order, with the file's numbers: of .npy arrays, (H, W) or (H, W, C), and
    of images such as RGBA and 16-bit PNG. Their transparency is a channel; a palette stands for its colours.

    Args:
        path: anything that Detectron2's PathManager opens.
        format: "BGR", "RGB", "L" or "BANDS".
        num_channels: that the model takes; None: any. Matters to "BANDS", the others have 3, 3 and 1.

    Returns:
        (H, W, C), contiguous and writable: uint8, or float32 of "BANDS" of any other type.

    Raises:
        ValueError: naming the file, if it is missing, empty, corrupt, holds a value that is not finite, or has another
            number of channels; or naming INPUT.FORMAT, if that is none of the four.
    """
    if format == "BANDS":
        bands = _read_bands(path)
        if num_channels not in (None, bands.shape[2]):
            raise ValueError(
                f"{path}: has {bands.shape[2]} channels, the model takes {num_channels}, as many as MODEL.PIXEL_MEAN "
                'has numbers (INPUT.FORMAT is "BANDS")'
            )
        return bands
    with open_image(path) as image:
        image = _upright(image, path)
        if image.mode == "F" or image.mode.startswith("I"):
            image = Image.fromarray(_to_8_bit(np.asarray(image), path))
        # A palette may hold its transparency as bytes, which Pillow turns into RGBA alone without a warning.
        pixels = np.asarray(image.convert("RGBA" if image.mode == "P" else "RGB"))[..., :3]
    return in_format(pixels, format)


def in_format(pixels: np.ndarray, format: str) -> np.ndarray:
    """(H, W, 3) in RGB -> a copy in "RGB" or "BGR", or (H, W, 1) in "L"; a ValueError that names INPUT.FORMAT else."""
    if format not in ("BGR", "RGB", "L"):
        raise ValueError(f"INPUT.FORMAT is {format!r}, expected 'BGR', 'RGB' or 'L' for a picture of 3 channels")
    if format == "L":
        return np.array(Image.fromarray(pixels).convert("L"))[..., None]
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


def _read_bands(path: str) -> np.ndarray:
    if path.lower().endswith(".npy"):
        return as_numbers(load_array(path), path)
    with open_image(path) as image:
        bands = opencv_bands(image, path) if is_deep(image, path) else image_bands(_upright(image, path), path)
    return as_numbers(bands, path)


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
