"""The boundary region of every segment of a label map at once (Boundary IoU, Cheng et al., arXiv 2103.16562)."""

from __future__ import annotations

import cv2
import numpy as np

__all__ = ["BOUNDARY_RATIO", "boundary_width", "segment_boundaries"]

BOUNDARY_RATIO = 0.02  # width of the region as a share of the image's diagonal, as published


def boundary_width(height: int, width: int, ratio: float = BOUNDARY_RATIO) -> int:
    """The paper's d in pixels: a share of the diagonal, rounded, at least 1."""
    return max(round(ratio * float(np.hypot(height, width))), 1)


def segment_boundaries(labels: np.ndarray, width: int) -> np.ndarray:
    """The pixels that `width` erosions with a 3x3 square take from their own segment; the outside of the image erodes.

    In other words: those with a pixel of another label, or the outside, at most `width` rows and columns away. Such a
    pixel is at most `width` - 1 away from one that touches another label, itself included, and the reverse holds too.
    So one dilation of the touching pixels does what the published code does with an erosion per segment.

    Args:
        labels: (H, W) ids.
        width: in pixels, at least 1.

    Returns:
        (H, W) uint8, 1 on a boundary.
    """
    touching = np.zeros(labels.shape, dtype=np.uint8)
    touching[[0, -1]] = touching[:, [0, -1]] = 1
    here, there = slice(None, -1), slice(1, None)
    for one, other in (
        ((slice(None), here), (slice(None), there)),
        ((here, slice(None)), (there, slice(None))),
        ((here, here), (there, there)),
        ((here, there), (there, here)),
    ):
        differs = labels[one] != labels[other]
        touching[one] |= differs
        touching[other] |= differs
    if width == 1:
        return touching
    return cv2.dilate(touching, np.ones((2 * width - 1, 2 * width - 1), dtype=np.uint8))
