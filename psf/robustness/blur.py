"""Blur of four kinds. Images are (H, W, 3) float64 RGB in [0, 1], before and after."""

from __future__ import annotations

import cv2
import numpy as np

__all__ = ["defocus_blur", "gaussian_blur", "glass_blur", "motion_blur", "smear", "smooth"]


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
    """Smoothed, each pixel swapped with one at most `reach` away, smoothed again.

    Differs from the published code: there the pixels are visited row by row; here those are swapped at once that are
    too far apart to meet, which is faster by far.
    """
    blurred = smooth(image, sigma)
    height, width = image.shape[:2]
    side = 2 * reach + 1
    for _ in range(rounds):
        for start in range(side * side):
            top, left = divmod(start, side)
            rows, columns = np.meshgrid(
                np.arange(height - reach - top, reach, -side),
                np.arange(width - reach - left, reach, -side),
                indexing="ij",
            )
            other_rows, other_columns = (x + rng.integers(-reach, reach, x.shape) for x in (rows, columns))
            here, there = blurred[rows, columns], blurred[other_rows, other_columns]
            blurred[rows, columns], blurred[other_rows, other_columns] = there, here
    return smooth(blurred, sigma)


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
