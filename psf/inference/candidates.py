"""From the model's outputs for one image to the candidates that compete for its pixels."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["best_class", "top_pairs"]


def best_class(class_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each thing query with its most probable class (section 3.5).

    Args:
        class_logits: (N, K_things).

    Returns:
        Positions of the queries (N,), their classes (N,) and probabilities (N,).
    """
    scores, classes = class_logits.sigmoid().max(-1)
    return torch.arange(len(classes), device=classes.device), classes, scores


def top_pairs(class_logits: Tensor, num_pairs: int) -> tuple[Tensor, Tensor, Tensor]:
    """The most probable pairs of query and class, best first; a query may appear with several classes (B2.1).

    Returns:
        As `best_class`, with min(num_pairs, N * K_things) rows.
    """
    num_classes = class_logits.shape[-1]
    scores, flat = class_logits.sigmoid().flatten().topk(min(num_pairs, class_logits.numel()))
    return torch.div(flat, num_classes, rounding_mode="floor"), flat % num_classes, scores
