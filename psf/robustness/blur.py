"""Blur of four kinds. Images are (H, W, 3) float64 RGB in [0, 1], before and after."""

from __future__ import annotations

import cv2
import numpy as np

__all__ = ["defocus_blur", "gaussian_blur", "glass_blur", "motion_blur", "overwrite", "smear", "smooth"]


def gaussian_blur(image: np.ndarray, rng: np.random.Generator, sigma: float) -> np.ndarray:
    """A Gaussian of `sigma` pixels."""
    return smooth(image, sigma)


def defocus_blur(image: np.ndarray, rng: np.random.Generator, radius: int, edge: float) -> np.ndarray:
    """A disk of `radius` pixels whose edge is softened by a Gaussian of `edge` pixels."""
    reach = max(radius, 8)
    offsets = np.arange(-reach, reach + 1)
    disk = (offsets[:, None] ** 2 + offsets[None] ** 2 <= radius**2).astype(np.float64)
    side = 3 if radius <= 8 else 5
    kernel = cv2.GaussianBlur(disk / disk.sum(), (side, side), edge)
    return cv2.filter2D(image, -1, kernel)


def motion_blur(image: np.ndarray, rng: np.random.Generator, radius: int, sigma: float) -> np.ndarray:
    """A line of light, within 45 degrees of the horizontal, that fades with the distance."""
    return smear(image, radius, sigma, rng.uniform(-45, 45))


def glass_blur(image: np.ndarray, rng: np.random.Generator, sigma: float, reach: int, rounds: int) -> np.ndarray:
    """Smoothed, each pixel overwritten by one at most `reach` away, row by row from the bottom right, smoothed again.

    The published code says that it swaps the two. As run it does not: numpy hands it views, so that the first pixel
    has become the second before the second is written. Nor does this; published figures are of what was run.
    """
    steps = (255 * smooth(image, sigma) + 1e-6).astype(np.uint8)  # cut, as in `corrupt`
    height, width = image.shape[:2]
    shape = (max(height - 2 * reach, 0), max(width - 2 * reach, 0))
    for _ in range(rounds):
        steps = overwrite(steps, rng.integers(-reach, reach, (*shape, 2)), reach)
    return smooth(steps / 255, sigma)


def overwrite(image: np.ndarray, offsets: np.ndarray, reach: int) -> np.ndarray:
    """`image[y, x] = image[y + dy, x + dx]` for y and x from their sizes less `reach` down to `reach` + 1.

    A pixel may take what another took before it in the same round. So each follows its source, the source of that one
    and so on, until one that is not written before it is read; all of them at once, in strides that double.

    Args:
        image: (H, W, 3).
        offsets: (H - 2 * reach, W - 2 * reach, 2) dy and dx of these pixels, in rising order of y and x.
        reach: what they are at least `-reach`, and less than.
    """
    height, width = image.shape[:2]
    places = np.arange(height * width).reshape(height, width)
    written = places[reach + 1 : height - reach + 1, reach + 1 : width - reach + 1]
    source: np.ndarray = places.reshape(-1).copy()
    source[written] = written + offsets[..., 0] * width + offsets[..., 1]
    is_written = np.zeros(height * width, dtype=bool)
    is_written[written] = True
    follows = is_written[source] & (source > places.reshape(-1))  # written earlier, as that one comes later in memory
    while follows.any():
        source, follows = np.where(follows, source[source], source), follows & follows[source]
    return image.reshape(height * width, -1)[source].reshape(image.shape)


def smooth(image: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian of `sigma` pixels; the border is continued."""
    return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)


def smear(image: np.ndarray, radius: int, sigma: float, degrees: float) -> np.ndarray:
    """The mean along a line that starts at each pixel, 2 * radius + 1 long, by the half of a Gaussian."""
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    angle = np.deg2rad(degrees)
    rows, columns = (np.ceil(steps * part - 0.5).astype(int) for part in (np.sin(angle), np.cos(angle)))
    kernel = np.zeros((4 * radius + 1, 4 * radius + 1))
    np.add.at(kernel, (rows + 2 * radius, columns + 2 * radius), weights / weights.sum())
    return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REPLICATE)
