"""Pixel-wise strategies, the paper's baselines for mask-wise merging (table 7)."""

from __future__ import annotations

import torch
from torch import Tensor

from psf.inference.candidates import ImageGeometry, resize_in_chunks
from psf.structures import Candidates, PanopticSegmentation, Segment

__all__ = ["class_times_mask", "pixel_argmax"]


def pixel_argmax(candidates: Candidates, geometry: ImageGeometry, t_cnf: Tensor) -> PanopticSegmentation:
    """DETR's strategy: the highest mask score wins a pixel, among candidates whose class probability reaches t_cnf.

    Args:
        candidates: N of them.
        geometry: sizes of the padded batch, the image and the output.
        t_cnf: (N,) least class probability.

    Returns:
        The map; a segment's score is its class probability.
    """
    kept = (candidates.class_scores >= t_cnf).nonzero()[:, 0]
    chosen = candidates.select(kept)
    winner, _ = _best_candidate(chosen.mask_scores, torch.ones_like(chosen.class_scores), geometry)
    return _segments(winner, kept, candidates.class_scores)


def class_times_mask(
    candidates: Candidates, geometry: ImageGeometry, t_cnf: Tensor, t_keep: Tensor, mask_threshold: float
) -> PanopticSegmentation:
    """MaskFormer's strategy: the highest product of class probability and mask score wins a pixel.

    A segment loses the pixels where its mask score is not above `mask_threshold`, and is dropped if it won less than
    t_keep of its mask.

    Args:
        candidates: N of them.
        geometry: sizes of the padded batch, the image and the output.
        t_cnf: (N,) least class probability.
        t_keep: (N,) least share of the mask that the segment must win.
        mask_threshold: a pixel belongs to the mask where its score is above.

    Returns:
        The map; a segment's score is its class probability.

    In MaskFormer's code, unlike here, the pixels that a candidate won outside its own mask also count for its share.
    """
    kept = (candidates.class_scores >= t_cnf).nonzero()[:, 0]
    chosen = candidates.select(kept)
    winner, mask_areas = _best_candidate(chosen.mask_scores, chosen.class_scores, geometry, mask_threshold)
    won = torch.bincount(winner[winner >= 0], minlength=len(kept))
    lost = won / mask_areas.double() < t_keep[kept]  # in float64, so that a share of exactly t_keep is enough
    winner = torch.where((winner >= 0) & ~_lookup(lost, winner), winner, -1)
    return _segments(winner, kept, candidates.class_scores)


def _best_candidate(
    mask_scores: Tensor, factors: Tensor, geometry: ImageGeometry, mask_threshold: float | None = None
) -> tuple[Tensor, Tensor]:
    """(H, W) index of the candidate with the highest factor * score, the first among equals, and (N,) mask areas.

    The index is -1 where the pixel is outside the candidate's mask. Without a threshold, the areas are those of the
    image.
    """
    best = mask_scores.new_full(geometry.output_size, -1.0)
    winner = torch.full(geometry.output_size, -1, dtype=torch.long, device=mask_scores.device)
    inside = torch.zeros_like(winner, dtype=torch.bool)
    areas, start = [], 0
    for scores in resize_in_chunks(mask_scores, geometry):
        if not len(scores):
            break
        mask = torch.ones_like(scores, dtype=torch.bool) if mask_threshold is None else scores > mask_threshold
        areas.append(mask.sum((1, 2)))
        value, index = (scores * factors[start : start + len(scores), None, None]).max(0)
        better = value > best
        best = torch.where(better, value, best)
        winner = torch.where(better, index + start, winner)
        inside = torch.where(better, mask.gather(0, index[None])[0], inside)
        start += len(scores)
    return torch.where(inside, winner, -1), torch.cat(areas) if areas else winner.new_zeros(0)


def _lookup(flags: Tensor, winner: Tensor) -> Tensor:
    """flags[winner], False where winner is -1."""
    return torch.cat((flags, flags.new_zeros(1)))[winner]


def _segments(winner: Tensor, kept: Tensor, class_scores: Tensor) -> PanopticSegmentation:
    positions, areas = winner[winner >= 0].unique(return_counts=True)
    ids = winner.new_zeros(len(kept) + 1, dtype=torch.int32)  # the last entry, for -1, stays 0
    ids[positions] = torch.arange(1, len(positions) + 1, dtype=torch.int32, device=winner.device)
    originals = kept[positions]
    rows = zip(originals.tolist(), class_scores[originals].tolist(), areas.tolist(), strict=True)
    segments = [Segment(i, candidate, score, area) for i, (candidate, score, area) in enumerate(rows, start=1)]
    return PanopticSegmentation(ids[winner], segments)
