"""Noise of four kinds. Images are (H, W, 3) float64 RGB in [0, 1], before and after."""

from __future__ import annotations

import numpy as np

__all__ = ["gaussian_noise", "impulse_noise", "shot_noise", "speckle_noise"]


def gaussian_noise(image: np.ndarray, rng: np.random.Generator, deviation: float) -> np.ndarray:
    """The same noise everywhere, as in weak light."""
    return image + rng.normal(scale=deviation, size=image.shape)


def shot_noise(image: np.ndarray, rng: np.random.Generator, photons: float) -> np.ndarray:
    """A Poisson count of light, where white is so many photons."""
    return rng.poisson(image * photons) / photons


def impulse_noise(image: np.ndarray, rng: np.random.Generator, share: float) -> np.ndarray:
    """Salt and pepper: a share of the values, per channel, is 0 or 1."""
    is_hit = rng.random(image.shape) < share
    return np.where(is_hit, rng.random(image.shape) < 0.5, image)


def speckle_noise(image: np.ndarray, rng: np.random.Generator, deviation: float) -> np.ndarray:
    """Noise in proportion to the brightness."""
    return image + image * rng.normal(scale=deviation, size=image.shape)
