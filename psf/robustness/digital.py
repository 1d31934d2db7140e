"""What processing does to an image. Images are (H, W, 3) float64 RGB in [0, 1], before and after."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

__all__ = ["brightness", "contrast", "jpeg_compression", "saturate"]


def brightness(image: np.ndarray, rng: np.random.Generator, more: float) -> np.ndarray:
    """HSV's value plus `more`: the channels keep their ratios, black becomes gray."""
    value = image.max(axis=2, keepdims=True)
    brighter = np.clip(value + more, 0, 1)
    return np.where(value > 0, image * (brighter / np.where(value > 0, value, 1)), brighter)


def contrast(image: np.ndarray, rng: np.random.Generator, factor: float) -> np.ndarray:
    """Nearer to each channel's mean."""
    mean = image.mean(axis=(0, 1), keepdims=True)
    return mean + factor * (image - mean)


def saturate(image: np.ndarray, rng: np.random.Generator, factor: float, more: float) -> np.ndarray:
    """HSV's saturation times `factor`, plus `more`; gray, which has no hue, turns red."""
    value = image.max(axis=2, keepdims=True)
    spread = value - image  # in proportion to the saturation, where hue and value stay
    saturation = spread.max(axis=2, keepdims=True) / np.where(value > 0, value, 1)
    changed = np.clip(factor * saturation + more, 0, 1)
    is_gray = saturation == 0
    red = value * changed * np.array([0.0, 1.0, 1.0])
    return value - np.where(is_gray, red, spread * changed / np.where(is_gray, 1, saturation))


def jpeg_compression(image: np.ndarray, rng: np.random.Generator, quality: int) -> np.ndarray:
    """Written as a JPEG and read again."""
    buffer = BytesIO()
    Image.fromarray(np.rint(255 * image).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as decoded:
        return np.asarray(decoded, dtype=np.float64) / 255
