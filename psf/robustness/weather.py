"""Weather in front of the lens. Images are (H, W, 3) float64 RGB in [0, 1], before and after."""

from __future__ import annotations

import cv2
import numpy as np

from psf.robustness.blur import smear, smooth

__all__ = ["fog", "frost", "snow", "spatter"]

WATER, MUD = np.array([175, 238, 238]) / 255, np.array([63, 42, 20]) / 255
ICE = np.array([0.84, 0.93, 1.0])


def snow(
    image: np.ndarray,
    rng: np.random.Generator,
    mean: float,
    deviation: float,
    size: float,
    least: float,
    radius: int,
    sigma: float,
    share: float,
) -> np.ndarray:
    """Falling flakes of two directions, over an image that snow makes brighter.

    Args:
        mean, deviation: of the noise that flakes are made of.
        size: of a flake, in pixels.
        least: what noise must reach to become a flake.
        radius, sigma: of its motion.
        share: of the image as it was.
    """
    height, width = image.shape[:2]
    noise = rng.normal(mean, deviation, size=(height, width))
    part = (max(int(np.ceil(height / size)), 1), max(int(np.ceil(width / size)), 1))
    flakes = cv2.resize(noise[: part[0], : part[1]], (width, height), interpolation=cv2.INTER_LINEAR)
    flakes = np.clip(np.where(flakes < least, 0, flakes), 0, 1)
    flakes = smear(flakes, radius, sigma, rng.uniform(-135, -45))[..., None]
    gray = image @ np.array([0.299, 0.587, 0.114])
    whitened = share * image + (1 - share) * np.maximum(image, 1.5 * gray[..., None] + 0.5)
    return whitened + flakes + np.rot90(flakes, 2)


def fog(image: np.ndarray, rng: np.random.Generator, density: float, decay: float) -> np.ndarray:
    """A cloud over the image, which is then brought back to its range."""
    highest = image.max()
    if highest == 0:
        return image
    cloud = _plasma(image.shape[:2], decay, rng)[..., None]
    return (image + density * cloud) * highest / (highest + density)


def frost(image: np.ndarray, rng: np.random.Generator, share: float, ice: float) -> np.ndarray:
    """Crystals on a pane, mixed into the image.

    Differs from the published code: there the crystals are one of six photographs, here they are generated. So figures
    of frost can be compared among models, and not with published ones.
    """
    cloud, folds = (_plasma(image.shape[:2], decay, rng) for decay in (1.9, 1.6))
    needles = (1 - np.abs(2 * folds - 1)) ** 4  # bright where the second cloud crosses its middle
    pane = np.clip(0.15 + 0.5 * cloud + 0.6 * needles, 0, 1)[..., None] * ICE
    return share * image + ice * pane


def spatter(
    image: np.ndarray,
    rng: np.random.Generator,
    mean: float,
    deviation: float,
    size: float,
    least: float,
    strength: float,
    is_mud: bool,
) -> np.ndarray:
    """Drops of water that shine, or of mud that covers.

    Args:
        mean, deviation: of the noise that drops are made of.
        size: to how many pixels it is smoothed.
        least: what it must then reach to become a drop.
        strength: of the water's shine; of mud, the pixels to which its edge is smoothed.
        is_mud: mud, not water.
    """
    noise = smooth(rng.normal(mean, deviation, size=image.shape[:2]), size)
    drops = np.where(noise < least, 0, noise)
    if is_mud:
        cover = smooth((drops > least).astype(np.float64), strength)
        cover = np.where(cover < 0.8, 0, cover)[..., None]
        return image * (1 - cover) + MUD * cover
    drops = np.clip(255 * drops, 0, 255).astype(np.uint8)
    distance = cv2.distanceTransform(255 - cv2.Canny(drops, 50, 150), cv2.DIST_L2, 5)
    near = cv2.equalizeHist(cv2.blur(np.minimum(distance, 20), (3, 3)).astype(np.uint8))
    relief = cv2.filter2D(near, cv2.CV_8U, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], dtype=np.float32))
    shine = drops * cv2.blur(relief, (3, 3)).astype(np.float64)
    return image + strength * (shine / max(shine.max(), 1))[..., None] * WATER


def _plasma(size: tuple[int, int], decay: float, rng: np.random.Generator) -> np.ndarray:
    """(*size) in [0, 1]: a height map by the diamond-square method; detail shrinks by `decay` with each halving."""
    side = 1 << max(max(size) - 1, 1).bit_length()
    heights = np.zeros((side, side))
    step, wobble = side, 100.0

    def middle(four: np.ndarray) -> np.ndarray:
        return four / 4 + wobble * rng.uniform(-wobble, wobble, four.shape)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        columns = corners + np.roll(corners, -1, 0)
        heights[half::step, half::step] = middle(columns + np.roll(columns, -1, 1))
        centres = heights[half::step, half::step]
        across = corners + np.roll(corners, -1, 1)
        heights[::step, half::step] = middle(centres + np.roll(centres, 1, 0) + across)
        heights[half::step, ::step] = middle(centres + np.roll(centres, 1, 1) + columns)
        step, wobble = half, wobble / decay
    part = heights - heights.min()
    return (part / part.max())[: size[0], : size[1]]
