"""Pixel-wise strategies, the paper's baselines for mask-wise merging (table 7)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from psf.inference.candidates import ImageGeometry, resize_in_chunks
from psf.ops.transfer import download_arrays, upload_numbers
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
    chosen, kept, scores = _confident(candidates, t_cnf)
    winner, _ = _best_candidate(chosen.mask_scores, torch.ones_like(chosen.class_scores), geometry)
    return _segments(winner, _won_areas(winner, len(kept)), kept, scores)


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
    chosen, kept, scores = _confident(candidates, t_cnf)
    winner, mask_areas = _best_candidate(chosen.mask_scores, chosen.class_scores, geometry, mask_threshold)
    won = _won_areas(winner, len(kept))
    shares = t_keep[upload_numbers(kept, t_keep.device, torch.long)]
    lost = won / mask_areas.double() < shares  # in float64, so that a share of exactly t_keep is enough
    return _segments(winner, won * ~lost, kept, scores)


def _confident(candidates: Candidates, t_cnf: Tensor) -> tuple[Candidates, np.ndarray, np.ndarray]:
    """The M candidates whose class probability reaches t_cnf; (M,) positions and probabilities, on the host."""
    is_kept, scores = download_arrays(candidates.class_scores >= t_cnf, candidates.class_scores)
    kept = np.flatnonzero(is_kept)
    return candidates.select(upload_numbers(kept, t_cnf.device, torch.long)), kept, scores[kept]


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


def _won_areas(winner: Tensor, count: int) -> Tensor:
    """(count,) number of pixels of each candidate; -1 in the map is no candidate."""
    areas = torch.zeros(count + 1, dtype=torch.long, device=winner.device)
    places = winner.flatten() % (count + 1)  # -1 -> the last
    return areas.scatter_add_(0, places, torch.ones_like(places))[:count]


def _segments(winner: Tensor, areas: Tensor, kept: np.ndarray, class_scores: np.ndarray) -> PanopticSegmentation:
    """The candidates with an area as segments, in their order; the pixels of the others get 0."""
    is_segment = torch.cat((areas > 0, areas.new_zeros(1, dtype=torch.bool)))  # the last is for -1
    ids = is_segment.cumsum(0, dtype=torch.int32) * is_segment
    [all_areas] = download_arrays(areas)
    rows = [row for row in zip(kept.tolist(), class_scores.tolist(), all_areas.tolist(), strict=True) if row[2]]
    return PanopticSegmentation(ids.to(torch.int32)[winner], [Segment(i, *row) for i, row in enumerate(rows, start=1)])
