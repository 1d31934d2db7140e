"""The sixteen corruptions of the paper's table 11, at five severities each.

Kinds and strengths follow Hendrycks and Dietterich (Benchmarking Neural Network Robustness to Common Corruptions
and Perturbations, ICLR 2019, arXiv 1903.12261), as used on COCO ("COCO-C") by Michaelis et al. (arXiv 1907.07484).
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from psf.errors import UserError
from psf.output import check_jpeg_size

__all__ = ["CORRUPTIONS", "SEVERITIES", "Corruption", "corrupt"]

# Why own code (checked in 2026): imagecorruptions 1.1.2, the last release (2020), uses np.float_, which numpy 2
# removed; corrupt-tta 0.1.7 runs, but changes glass blur and takes no seed. Both require opencv-python, which replaces
# opencv-python-headless. The frost photographs that they ship have no stated source; `frost` generates its ice.

SEVERITIES = (1, 2, 3, 4, 5)
WATER, MUD = np.array([175, 238, 238]) / 255, np.array([63, 42, 20]) / 255  # RGB in [0, 1]
ICE = np.array([0.84, 0.93, 1.0])


def gaussian_noise(image: np.ndarray, rng: np.random.Generator, deviation: float) -> np.ndarray:
    """Gaussian noise, as in weak light."""
    return image + rng.normal(scale=deviation, size=image.shape)


def shot_noise(image: np.ndarray, rng: np.random.Generator, photons: float) -> np.ndarray:
    """Poisson noise; white has a mean of `photons` photons."""
    return rng.poisson(image * photons) / photons


def impulse_noise(image: np.ndarray, rng: np.random.Generator, share: float) -> np.ndarray:
    """Salt and pepper: a share of the values, per channel, is 0 or 1."""
    is_hit = rng.random(image.shape) < share
    return np.where(is_hit, rng.random(image.shape) < 0.5, image)


def speckle_noise(image: np.ndarray, rng: np.random.Generator, deviation: float) -> np.ndarray:
    """Noise in proportion to the brightness."""
    return image + image * rng.normal(scale=deviation, size=image.shape)


def gaussian_blur(image: np.ndarray, rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Gaussian blur of `sigma` pixels."""
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
    """Motion blur along a line within 45 degrees of the horizontal, fading with the distance."""
    return smear(image, radius, sigma, rng.uniform(-45, 45))


def glass_blur(image: np.ndarray, rng: np.random.Generator, sigma: float, reach: int, rounds: int) -> np.ndarray:
    """Smooth, overwrite each pixel by a pixel at most `reach` away, row by row from the bottom right, and smooth again.

    The published code intends a swap, but because of numpy views it overwrites: the first pixel already has the value
    of the second when the second is written. Published results were measured this way, so this function does the same.
    """
    steps = (255 * smooth(image, sigma) + 1e-6).astype(np.uint8)  # truncated, as in `corrupt`
    height, width = image.shape[:2]
    shape = (max(height - 2 * reach, 0), max(width - 2 * reach, 0))
    for _ in range(rounds):
        steps = overwrite(steps, rng.integers(-reach, reach, (*shape, 2)), reach)
    return smooth(steps / 255, sigma)


def overwrite(image: np.ndarray, offsets: np.ndarray, reach: int) -> np.ndarray:
    """`image[y, x] = image[y + dy, x + dx]` for y and x from their sizes less `reach` down to `reach` + 1.

    A pixel may copy a pixel that was written earlier in the same round. So each pixel follows its source, the source of
    its source and so on, to a pixel that is not written before it is read; all pixels at once, with doubling steps.

    Args:
        image: (H, W, 3).
        offsets: (H - 2 * reach, W - 2 * reach, 2) dy and dx of these pixels, in ascending order of y and x.
        reach: offsets are in [-reach, reach).
    """
    height, width = image.shape[:2]
    places = np.arange(height * width).reshape(height, width)
    written = places[reach + 1 : height - reach + 1, reach + 1 : width - reach + 1]
    source: np.ndarray = places.reshape(-1).copy()
    source[written] = written + offsets[..., 0] * width + offsets[..., 1]
    is_written = np.zeros(height * width, dtype=bool)
    is_written[written] = True
    follows = is_written[source] & (
        source > places.reshape(-1)
    )  # written earlier, because pixels later in memory come first
    while follows.any():
        source, follows = np.where(follows, source[source], source), follows & follows[source]
    return image.reshape(height * width, -1)[source].reshape(image.shape)


def smooth(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of `sigma` pixels; the border is replicated."""
    return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)


def smear(image: np.ndarray, radius: int, sigma: float, degrees: float) -> np.ndarray:
    """The mean along a line of 2 * radius + 1 pixels from each pixel, weighted by half a Gaussian."""
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    angle = np.deg2rad(degrees)
    rows, columns = (np.ceil(steps * part - 0.5).astype(int) for part in (np.sin(angle), np.cos(angle)))
    kernel = np.zeros((4 * radius + 1, 4 * radius + 1))
    np.add.at(kernel, (rows + 2 * radius, columns + 2 * radius), weights / weights.sum())
    return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REPLICATE)


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
    """Falling flakes in two directions on a brightened image.

    Args:
        mean, deviation: of the noise from which flakes are made.
        size: of a flake, in pixels.
        least: smallest noise value of a flake.
        radius, sigma: of the flakes' motion, see `smear`.
        share: of the original image.
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
    """Add a cloud to the image, and rescale to the original range."""
    highest = image.max()
    if highest == 0:
        return image
    cloud = _plasma(image.shape[:2], decay, rng)[..., None]
    return (image + density * cloud) * highest / (highest + density)


def frost(image: np.ndarray, rng: np.random.Generator, share: float, ice: float) -> np.ndarray:
    """Mix ice crystals into the image.

    Differs from the published code, which uses one of six photographs: the crystals are generated. So results on frost
    can be compared among models, but not with published results.
    """
    cloud, folds = (_plasma(image.shape[:2], decay, rng) for decay in (1.9, 1.6))
    needles = (1 - np.abs(2 * folds - 1)) ** 4  # bright where the second cloud is near 0.5
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
    """Transparent water drops, or opaque mud drops.

    Args:
        mean, deviation: of the noise from which drops are made.
        size: sigma of the noise's smoothing, in pixels.
        least: smallest noise value of a drop.
        strength: of the water's highlights; for mud, sigma of the edge's smoothing in pixels.
        is_mud: whether drops are mud, not water.
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
    """(*size) in [0, 1]: a height map by the diamond-square method; detail is divided by `decay` at each halving."""
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


def brightness(image: np.ndarray, rng: np.random.Generator, more: float) -> np.ndarray:
    """HSV's value plus `more`: the channels keep their ratios, black becomes gray."""
    value = image.max(axis=2, keepdims=True)
    brighter = np.clip(value + more, 0, 1)
    return np.where(value > 0, image * (brighter / np.where(value > 0, value, 1)), brighter)


def contrast(image: np.ndarray, rng: np.random.Generator, factor: float) -> np.ndarray:
    """Scale the difference to each channel's mean by `factor`."""
    mean = image.mean(axis=(0, 1), keepdims=True)
    return mean + factor * (image - mean)


def saturate(image: np.ndarray, rng: np.random.Generator, factor: float, more: float) -> np.ndarray:
    """HSV's saturation times `factor`, plus `more`; gray, which has no hue, turns red."""
    value = image.max(axis=2, keepdims=True)
    spread = value - image  # proportional to the saturation for constant hue and value
    saturation = spread.max(axis=2, keepdims=True) / np.where(value > 0, value, 1)
    changed = np.clip(factor * saturation + more, 0, 1)
    is_gray = saturation == 0
    red = value * changed * np.array([0.0, 1.0, 1.0])
    return value - np.where(is_gray, red, spread * changed / np.where(is_gray, 1, saturation))


def jpeg_compression(image: np.ndarray, rng: np.random.Generator, quality: int) -> np.ndarray:
    """Save as JPEG and read again; a UserError if the image is too large for one."""
    check_jpeg_size(image.shape[0], image.shape[1], "an image", "leave it out of the dataset, or cut it into parts")
    buffer = BytesIO()
    Image.fromarray(np.rint(255 * image).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as decoded:
        return np.asarray(decoded, dtype=np.float64) / 255


class Corruption(NamedTuple):
    """A group of table 11, a function of (image in [0, 1], rng, *settings), and its settings at each severity."""

    group: str
    function: Callable[..., np.ndarray]
    settings: tuple[tuple[Any, ...], ...]


def _single(*values: float) -> tuple[tuple[float], ...]:
    return tuple((value,) for value in values)


# In the order of table 11. The severities of "saturate" are not ordered: two take colour away, three add it.
CORRUPTIONS = {
    "motion_blur": Corruption("blur", motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    "defocus_blur": Corruption("blur", defocus_blur, ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))),
    "glass_blur": Corruption("blur", glass_blur, ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))),
    "gaussian_blur": Corruption("blur", gaussian_blur, _single(1, 2, 3, 4, 6)),
    "gaussian_noise": Corruption("noise", gaussian_noise, _single(0.08, 0.12, 0.18, 0.26, 0.38)),
    "impulse_noise": Corruption("noise", impulse_noise, _single(0.03, 0.06, 0.09, 0.17, 0.27)),
    "shot_noise": Corruption("noise", shot_noise, _single(60, 25, 12, 5, 3)),
    "speckle_noise": Corruption("noise", speckle_noise, _single(0.15, 0.2, 0.35, 0.45, 0.6)),
    "brightness": Corruption("digital", brightness, _single(0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": Corruption("digital", contrast, _single(0.4, 0.3, 0.2, 0.1, 0.05)),
    "saturate": Corruption("digital", saturate, ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))),
    "jpeg_compression": Corruption("digital", jpeg_compression, _single(25, 18, 15, 10, 7)),
    "snow": Corruption(
        "weather",
        snow,
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    "spatter": Corruption(
        "weather",
        spatter,
        (
            (0.65, 0.3, 4, 0.69, 0.6, False),
            (0.65, 0.3, 3, 0.68, 0.6, False),
            (0.65, 0.3, 2, 0.68, 0.5, False),
            (0.65, 0.3, 1, 0.65, 1.5, True),
            (0.67, 0.4, 1, 0.65, 1.5, True),
        ),
    ),
    "fog": Corruption("weather", fog, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))),
    "frost": Corruption("weather", frost, ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))),
}


def corrupt(image: np.ndarray, name: str, severity: int, seed: int | tuple[int, ...] = 0) -> np.ndarray:
    """Apply a corruption to an image.

    Args:
        image: (H, W, 3) uint8 RGB; it is not changed.
        name: a key of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: of the random numbers; equal seeds give equal images.

    Raises:
        UserError: if the corruption or severity does not exist, or the image has another shape or type.
    """
    if name not in CORRUPTIONS:
        raise UserError(f"unknown corruption {name!r}, expected one of {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise UserError(f"severity {severity!r}: expected one of {', '.join(map(str, SEVERITIES))}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(f"expected an (H, W, 3) uint8 RGB image, found {image.shape} of {image.dtype}")
    _, function, settings = CORRUPTIONS[name]
    corrupted = function(image / 255.0, np.random.default_rng(seed), *settings[severity - 1])
    # Truncated, as published; 1e-6 compensates rounding errors.
    return (255 * np.clip(corrupted, 0, 1) + 1e-6).astype(np.uint8)
