"""Mask-wise merging (section 3.5, Algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from psf.predictions import PanopticSegmentation, Segment

__all__ = ["mask_wise_merging"]


def mask_wise_merging(
    confidence: Tensor, masks: Tensor, area: Tensor, t_cnf: Tensor, t_keep: Tensor
) -> PanopticSegmentation:
    """Paint masks onto an empty canvas in order of confidence.

    A mask keeps only the pixels that no better mask took; one that loses too much of itself is dropped, and what it
    would have covered stays free. Equal confidences are painted in the order given.

    Args:
        confidence: (N,) s_i, >= 0.
        masks: (N, H, W) bool, at output size; padding already cropped away.
        area: (N,) pixels of each mask.
        t_cnf: (N,) a mask of less confidence is skipped.
        t_keep: (N,) a mask is skipped if a smaller share of its pixels is still free.

    Returns:
        The map; segment ids count from 1 in the order of painting, a segment's score is its confidence.

    Raises:
        ValueError: if the inputs disagree about N.
    """
    lengths = {len(x) for x in (confidence, masks, area, t_cnf, t_keep)}
    if len(lengths) != 1:
        raise ValueError(f"confidence, masks, area, t_cnf and t_keep have different lengths: {sorted(lengths)}")
    segment_map = torch.zeros(masks.shape[1:], dtype=torch.int32, device=masks.device)
    free = torch.ones_like(segment_map, dtype=torch.bool)
    order = confidence.argsort(descending=True, stable=True)
    candidates = order[((confidence >= t_cnf) & (area > 0))[order]]
    scores, areas, keep = (x[candidates].tolist() for x in (confidence, area, t_keep))
    segments: list[Segment] = []
    for candidate, score, mask_area, share in zip(candidates.tolist(), scores, areas, keep, strict=True):
        visible = masks[candidate] & free
        visible_area = int(visible.sum())
        if visible_area == 0 or visible_area / mask_area < share:
            continue
        segments.append(Segment(id=len(segments) + 1, candidate=candidate, score=score, area=visible_area))
        segment_map[visible] = segments[-1].id
        free &= ~visible
    return PanopticSegmentation(segment_map, segments)
