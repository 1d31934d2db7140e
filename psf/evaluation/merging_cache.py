"""What a model proposes for an image, small enough to merge it hundreds of times over.

Mask-wise merging asks of pixels only which candidates' masks they are in. So pixels of the same masks and of the same
true segment are kept as one: an atom with a number of pixels. An image has thousands of atoms in place of a million
pixels, and merging and matching them gives what merging and matching the pixels gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from psf.evaluation.segment_matching import SegmentMatches, match_segments
from psf.inference import MergingThresholds

__all__ = ["CachedImage", "cache_image", "match_cached"]


class CachedImage(NamedTuple):
    """N candidates and the truth of one image, in A atoms."""

    class_scores: np.ndarray  # (N,) float32, probability p of the class
    mean_scores: np.ndarray  # (N,) float32, mean mask score, `extra_pixels` counted
    is_thing: np.ndarray  # (N,) bool
    categories: np.ndarray  # (N,) the data set's own category ids
    members: np.ndarray  # (N, ceil(A / 8)) uint8, which atoms a mask has; bits as np.packbits lays them
    areas: np.ndarray  # (N,) pixels of the masks
    pixels: np.ndarray  # (A,) pixels of the atoms
    truth: np.ndarray  # (A,) true segment ids, 0 is void
    segments: Sequence[Mapping[str, Any]]  # of the truth

    @property
    def num_bytes(self) -> int:
        """Of the arrays."""
        return sum(part.nbytes for part in self if isinstance(part, np.ndarray))


def cache_image(
    class_scores: torch.Tensor,
    mean_scores: torch.Tensor,
    masks: torch.Tensor,
    is_thing: torch.Tensor,
    categories: Sequence[int],
    truth: np.ndarray,
    segments: Sequence[Mapping[str, Any]],
) -> CachedImage:
    """Gather pixels into atoms.

    Args:
        class_scores, mean_scores, is_thing: (N,) of the candidates, in their order.
        masks: (N, H, W) bool, at the size of the truth.
        categories: N, the data set's own ids.
        truth: (H, W) segment ids, 0 is void.
        segments: of the truth, as `match_segments` takes them.
    """
    flat = masks.cpu().numpy().reshape(len(masks), truth.size)
    # A mask adds its own random number to its pixels: equal sums are equal masks, but for one chance in 10^10 or so.
    marks = np.random.default_rng(0).integers(2**63, size=len(masks) + 1, dtype=np.uint64)
    sums = truth.reshape(-1).astype(np.uint64) * (marks[-1] | np.uint64(1))
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
        truth=truth.reshape(-1)[places],
        segments=segments,
    )


def match_cached(image: CachedImage, things: MergingThresholds, stuff: MergingThresholds) -> SegmentMatches:
    """What an image adds to the panoptic quality if its candidates are merged with these numbers.

    `mask_wise_merging` and `match_segments`, on atoms.
    """
    alpha, beta, t_cnf, t_keep = np.array([stuff, things])[image.is_thing.astype(int)].T
    scores, means = image.class_scores.astype(np.float64), image.mean_scores.astype(np.float64)
    confidence = (scores**alpha * means**beta).astype(np.float32)
    may_be_painted = (confidence >= t_cnf) & (image.areas > 0)
    order = np.argsort(-confidence, kind="stable")
    labels = np.zeros(len(image.pixels), dtype=np.int64)
    segments: list[dict[str, int]] = []
    for candidate in order[may_be_painted[order]].tolist():
        mask = np.unpackbits(image.members[candidate], count=len(labels)).astype(bool)
        visible = mask & (labels == 0)
        area = image.pixels[visible].sum()
        if area == 0 or area / image.areas[candidate] < t_keep[candidate]:
            continue
        segments.append({"id": len(segments) + 1, "category_id": int(image.categories[candidate])})
        labels[visible] = segments[-1]["id"]
    return match_segments(image.truth, image.segments, labels, segments, image.pixels)
