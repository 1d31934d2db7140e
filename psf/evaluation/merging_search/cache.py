"""A compact form of an image's candidates, which can be merged hundreds of times.

Pixels in the same masks and the same ground-truth segment are equal for merging and matching. They are stored as one
atom with a number of pixels. An image has thousands of atoms instead of a million pixels, and merging and matching
atoms gives the same result as merging and matching pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from psf.evaluation.segment_matching import SegmentMatches, match_segments
from psf.inference import MergingThresholds, paint_masks

__all__ = ["CachedImage", "cache_image", "match_cached"]


class CachedImage(NamedTuple):
    """N candidates and the ground truth of one image, in A atoms."""

    class_scores: np.ndarray  # (N,) float32, probability p of the class
    mean_scores: np.ndarray  # (N,) float32, mean mask score, `extra_pixels` counted
    is_thing: np.ndarray  # (N,) bool
    categories: np.ndarray  # (N,) the dataset's own category ids
    members: np.ndarray  # (N, ceil(A / 8)) uint8, the atoms of each mask, as bits of np.packbits
    areas: np.ndarray  # (N,) pixels of the masks
    pixels: np.ndarray  # (A,) pixels of the atoms
    gt: np.ndarray  # (A,) ground-truth segment ids, 0 is void
    segments: Sequence[Mapping[str, Any]]  # of the ground truth

    @property
    def num_bytes(self) -> int:
        """Size of the arrays in bytes."""
        return sum(part.nbytes for part in self if isinstance(part, np.ndarray))


def cache_image(
    class_scores: torch.Tensor,
    mean_scores: torch.Tensor,
    masks: torch.Tensor,
    is_thing: torch.Tensor,
    categories: Sequence[int],
    gt: np.ndarray,
    segments: Sequence[Mapping[str, Any]],
) -> CachedImage:
    """Group pixels into atoms.

    Args:
        class_scores, mean_scores, is_thing: (N,) of the candidates, in their order.
        masks: (N, H, W) bool, at the size of the ground truth.
        categories: N, the dataset's own ids.
        gt: (H, W) segment ids, 0 is void.
        segments: of the ground truth, as for `match_segments`.
    """
    flat = masks.cpu().numpy().reshape(len(masks), gt.size)
    # Each mask adds a random number to its pixels: equal sums mean equal masks, with an error rate of about 1 in 10^10.
    marks = np.random.default_rng(0).integers(2**63, size=len(masks) + 1, dtype=np.uint64)
    sums = gt.reshape(-1).astype(np.uint64) * (marks[-1] | np.uint64(1))
    for mask, mark in zip(flat, marks):
        sums[mask] += mark
    _, places, pixels = np.unique(sums, return_index=True, return_counts=True)
    return CachedImage(
        class_scores=class_scores.float().cpu().numpy(),
        mean_scores=mean_scores.float().cpu().numpy(),
        is_thing=is_thing.cpu().numpy(),
        categories=np.asarray(categories, dtype=np.int64),
        members=np.packbits(flat[:, places], axis=1),
        areas=flat.sum(axis=1),
        pixels=pixels,
        gt=gt.reshape(-1)[places],
        segments=segments,
    )


def match_cached(image: CachedImage, things: MergingThresholds, stuff: MergingThresholds) -> SegmentMatches:
    """The matches of an image after merging with these thresholds: Algorithm 1 on atoms."""
    alpha, beta, t_cnf, t_keep = np.array([stuff, things])[image.is_thing.astype(int)].T
    scores, means = image.class_scores.astype(np.float64), image.mean_scores.astype(np.float64)
    confidence = (scores**alpha * means**beta).astype(np.float32)
    shape = image.pixels.shape

    def mask_of(candidate: int) -> tuple[tuple[slice], np.ndarray]:
        return (slice(None),), np.unpackbits(image.members[candidate], count=shape[0]).astype(bool)

    labels, painted = paint_masks(confidence, image.areas, t_cnf, t_keep, mask_of, shape, image.pixels)
    categories = image.categories.tolist()
    segments = [{"id": i, "category_id": categories[one.candidate]} for i, one in enumerate(painted, 1)]
    return match_segments(image.gt, image.segments, labels, segments, image.pixels)
