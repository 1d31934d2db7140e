"""From the model's outputs for one image to the candidates that compete for its pixels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from psf.precision import at_least_float32
from psf.predictions import Candidates

__all__ = ["best_class", "choose_things", "join_candidates", "stuff_candidates", "thing_candidates", "top_pairs"]


class ChosenThings(NamedTuple):
    """Queries that become candidates, each with one class: (M,) of an image, or (B, M) of a batch."""

    rows: Tensor  # positions among all queries
    classes: Tensor
    scores: Tensor  # probabilities of the classes, in [0, 1]


def best_class(class_logits: Tensor) -> ChosenThings:
    """Each thing query of an image, logits (N, K_things), with its most probable class (section 3.5)."""
    scores, classes = at_least_float32(class_logits).sigmoid().max(-1)
    return ChosenThings(torch.arange(len(classes), device=classes.device), classes, scores)


def top_pairs(class_logits: Tensor, num_pairs: int) -> ChosenThings:
    """The min(num_pairs, N * K_things) most probable pairs of query and class, best first, of logits (N, K_things).

    A query may appear with several classes. The released code's choice; the paper speaks of each query's class alone.
    """
    num_classes = class_logits.shape[-1]
    scores, flat = at_least_float32(class_logits).sigmoid().flatten().topk(min(num_pairs, class_logits.numel()))
    return ChosenThings(torch.div(flat, num_classes, rounding_mode="floor"), flat % num_classes, scores)


def choose_things(class_logits: Tensor, way: str, num_pairs: int) -> ChosenThings:
    """`best_class` or `top_pairs`, as `way` says, of each image of a batch: logits (B, N, K_things)."""
    chosen = [best_class(logits) if way == "best_class" else top_pairs(logits, num_pairs) for logits in class_logits]
    return ChosenThings(*(torch.stack(x) for x in zip(*chosen, strict=True)))


def thing_candidates(chosen: ChosenThings, mask_scores: Tensor, boxes_cxcywh_norm: Tensor | None) -> list[Candidates]:
    """The chosen things of each image of a batch: masks (B, M, h, w) and, where there are any, boxes (B, M, 4)."""
    rows, classes, scores = chosen
    boxes = [None] * len(rows) if boxes_cxcywh_norm is None else list(boxes_cxcywh_norm)
    return [
        Candidates(scores[b], classes[b], torch.ones_like(classes[b], dtype=torch.bool), mask_scores[b], boxes[b])
        for b in range(len(rows))
    ]


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
