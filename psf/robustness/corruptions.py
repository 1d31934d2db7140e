"""The sixteen corruptions of the paper's table 11, at five severities each.

Kinds and strengths are those of Hendrycks and Dietterich (Benchmarking Neural Network Robustness to Common Corruptions
and Perturbations, ICLR 2019, arXiv 1903.12261), as Michaelis et al. (arXiv 1907.07484) use them on COCO ("COCO-C").
The package of theirs, imagecorruptions, needs numpy 1 and a second build of OpenCV; so the formulas are written anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from psf.robustness import blur, digital, noise, weather

__all__ = ["CORRUPTIONS", "SEVERITIES", "Corruption", "corrupt"]

SEVERITIES = (1, 2, 3, 4, 5)


class Corruption(NamedTuple):
    """One kind: what does it, and with which numbers at each severity."""

    group: str
    function: Callable[..., np.ndarray]
    settings: tuple[tuple[Any, ...], ...]


def _single(*values: float) -> tuple[tuple[float], ...]:
    return tuple((value,) for value in values)


# In the order of table 11. The severities of "saturate" are not ordered: two take colour away, three add it.
CORRUPTIONS = {
    "motion_blur": Corruption("blur", blur.motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    "defocus_blur": Corruption("blur", blur.defocus_blur, ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))),
    "glass_blur": Corruption("blur", blur.glass_blur, ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))),
    "gaussian_blur": Corruption("blur", blur.gaussian_blur, _single(1, 2, 3, 4, 6)),
    "gaussian_noise": Corruption("noise", noise.gaussian_noise, _single(0.08, 0.12, 0.18, 0.26, 0.38)),
    "impulse_noise": Corruption("noise", noise.impulse_noise, _single(0.03, 0.06, 0.09, 0.17, 0.27)),
    "shot_noise": Corruption("noise", noise.shot_noise, _single(60, 25, 12, 5, 3)),
    "speckle_noise": Corruption("noise", noise.speckle_noise, _single(0.15, 0.2, 0.35, 0.45, 0.6)),
    "brightness": Corruption("digital", digital.brightness, _single(0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": Corruption("digital", digital.contrast, _single(0.4, 0.3, 0.2, 0.1, 0.05)),
    "saturate": Corruption("digital", digital.saturate, ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))),
    "jpeg_compression": Corruption("digital", digital.jpeg_compression, _single(25, 18, 15, 10, 7)),
    "snow": Corruption(
        "weather",
        weather.snow,
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
        weather.spatter,
        (
            (0.65, 0.3, 4, 0.69, 0.6, False),
            (0.65, 0.3, 3, 0.68, 0.6, False),
            (0.65, 0.3, 2, 0.68, 0.5, False),
            (0.65, 0.3, 1, 0.65, 1.5, True),
            (0.67, 0.4, 1, 0.65, 1.5, True),
        ),
    ),
    "fog": Corruption("weather", weather.fog, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))),
    "frost": Corruption("weather", weather.frost, ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))),
}


def corrupt(image: np.ndarray, name: str, severity: int, seed: int | tuple[int, ...] = 0) -> np.ndarray:
    """The image as it looks under a corruption.

    Args:
        image: (H, W, 3) uint8 RGB, which stays as it is.
        name: of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: of all that is random; the same gives the same image.

    Raises:
        ValueError: if there is no such corruption or severity, or the image is of another form.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"no corruption is called {name!r}; there are {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity {severity!r}: expected one of {', '.join(map(str, SEVERITIES))}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected an (H, W, 3) uint8 RGB image, found {image.shape} of {image.dtype}")
    _, function, settings = CORRUPTIONS[name]
    corrupted = function(image / 255.0, np.random.default_rng(seed), *settings[severity - 1])
    return (255 * np.clip(corrupted, 0, 1) + 1e-6).astype(np.uint8)  # cut, as published, but for what rounding took
