"""From the model's outputs for one image to the candidates that compete for its pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from psf.precision import at_least_float32
from psf.predictions import Candidates

__all__ = ["best_class", "join_candidates", "stuff_candidates", "top_pairs"]


def best_class(class_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each thing query with its most probable class (section 3.5).

    Args:
        class_logits: (N, K_things).

    Returns:
        Positions of the queries (N,), their classes (N,) and probabilities (N,).
    """
    scores, classes = at_least_float32(class_logits).sigmoid().max(-1)
    return torch.arange(len(classes), device=classes.device), classes, scores


def top_pairs(class_logits: Tensor, num_pairs: int) -> tuple[Tensor, Tensor, Tensor]:
    """The most probable pairs of query and class, best first; a query may appear with several classes.

    The released code's choice; the paper speaks of each query's class alone.

    Returns:
        As `best_class`, with min(num_pairs, N * K_things) rows.
    """
    num_classes = class_logits.shape[-1]
    scores, flat = at_least_float32(class_logits).sigmoid().flatten().topk(min(num_pairs, class_logits.numel()))
    return torch.div(flat, num_classes, rounding_mode="floor"), flat % num_classes, scores


def stuff_candidates(class_logits: Tensor, mask_scores: Tensor) -> Candidates:
    """Every stuff class of one image: logits (K_stuff,) and masks (K_stuff, h, w)."""
    index = torch.arange(len(class_logits), device=class_logits.device)
    return Candidates(
        at_least_float32(class_logits).sigmoid(), index, torch.zeros_like(index, dtype=torch.bool), mask_scores, None
    )


def join_candidates(things: Candidates, stuff: Candidates) -> Candidates:
    """Things, then stuff; where things have boxes, those of stuff are 0."""
    boxes = things.boxes_cxcywh_norm
    if boxes is not None:
        boxes = torch.cat((boxes, boxes.new_zeros(len(stuff.class_scores), 4)))
    return Candidates(
        class_scores=torch.cat((things.class_scores, stuff.class_scores)),
        class_indices=torch.cat((things.class_indices, stuff.class_indices)),
        is_thing=torch.cat((things.is_thing, stuff.is_thing)),
        mask_scores=torch.cat((things.mask_scores, stuff.mask_scores)),
        boxes_cxcywh_norm=boxes,
    )
