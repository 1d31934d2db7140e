"""Truths made of rectangles, and weights that single out one term."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from psf.losses import HungarianMatcher, PanopticCriterion
from psf.losses.assignment import Assignment
from psf.structures import PanopticTargets

Region = tuple[int, tuple[int, int, int, int]]  # class index; x0, y0, x1, y1 in pixels


def gt(
    things: Iterable[Region] = (),
    stuff: Iterable[Region] = (),
    *,
    image_size: tuple[int, int] = (8, 8),
    padded_size: tuple[int, int] | None = None,
) -> PanopticTargets:
    """The ground truth of an image; sizes are (height, width)."""
    things, stuff = list(things), list(stuff)
    size = padded_size or image_size
    return PanopticTargets(
        thing_classes=torch.tensor([c for c, _ in things], dtype=torch.long),
        thing_masks=_masks(things, size),
        thing_boxes_xyxy_px=torch.tensor([box for _, box in things], dtype=torch.float32).view(-1, 4),
        stuff_classes=torch.tensor([c for c, _ in stuff], dtype=torch.long),
        stuff_masks=_masks(stuff, size),
        image_size=image_size,
    )


def _masks(regions: list[Region], size: tuple[int, int]) -> Tensor:
    masks = torch.zeros(len(regions), *size, dtype=torch.bool)
    for mask, (_, (x0, y0, x1, y1)) in zip(masks, regions, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


def pairs(*query_and_thing: tuple[int, int]) -> Assignment:
    """An assignment, pair by pair."""
    table = torch.tensor(query_and_thing, dtype=torch.long).view(-1, 2)
    return Assignment(table[:, 0], table[:, 1])


def matcher(**weights: float) -> HungarianMatcher:
    """A matcher with these weights and no others."""
    none = {"class_weight": 0.0, "l1_weight": 0.0, "giou_weight": 0.0, "dice_weight": 0.0}
    return HungarianMatcher(**{**none, **weights}, focal_alpha=0.25, focal_gamma=2.0)


def criterion(**settings: Any) -> PanopticCriterion:
    """A criterion whose weights are 1 where not given."""
    names = (
        "cls_weight",
        "stuff_cls_weight",
        "seg_weight",
        "det_cls_weight",
        "det_l1_weight",
        "det_giou_weight",
        "things_weight",
        "stuff_weight",
    )
    ones = dict.fromkeys(names, 1.0)
    return PanopticCriterion(**{**ones, "balance": "fixed", "focal_alpha": 0.25, "focal_gamma": 2.0, **settings})
