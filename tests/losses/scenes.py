"""Truths made of rectangles, predictions without any symmetry, and weights that single out one term."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from psf.losses import HungarianMatcher, PanopticCriterion
from psf.losses.assignment import Assignment
from psf.structures import DecodedMasks, LocationLayer, PanopticTargets, TrainingPredictions

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


# A batch in which sizes, pairs, classes and layers all differ.
PADDED = (16, 24)
TARGETS = [
    gt(
        [(2, (1, 2, 9, 8)), (0, (12, 0, 20, 5)), (1, (3, 9, 19, 12))],
        [(3, (0, 0, 10, 12)), (1, (10, 3, 20, 9))],
        image_size=(12, 20),
        padded_size=PADDED,
    ),
    gt([(1, (5, 1, 24, 7)), (1, (0, 8, 9, 16))], [(0, (2, 2, 24, 16))], image_size=(16, 24), padded_size=PADDED),
    gt([], [(2, (0, 0, 7, 4))], image_size=(9, 10), padded_size=PADDED),
]
# Queries ascend, the things do not; each layer has its own pairs.
LOCATION_PAIRS = [
    [pairs((0, 2), (1, 0), (4, 1)), pairs((2, 1), (3, 0)), pairs()],
    [pairs((1, 1), (2, 2), (3, 0)), pairs((0, 1), (4, 0)), pairs()],
]
MASK_PAIRS = [pairs((1, 2), (2, 0), (3, 1)), pairs((0, 1), (3, 0)), pairs()]
PROPOSED = [pairs((0, 1), (3, 0), (5, 2), (6, 1)), pairs((1, 1), (2, 0), (6, 0)), pairs()]


def random_predictions(location_dim: int) -> TrainingPredictions:
    """For `TARGETS`: two location layers, two layers and a tail of mask decoders, and proposals of 7 tokens."""
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(len(TARGETS), *shape, generator=generator) * 0.8 + 0.1

    def logits(*shape: int) -> Tensor:
        return torch.randn(len(TARGETS), *shape, generator=generator)

    def layer(number: int) -> LocationLayer:
        return LocationLayer(logits(number, 3), uniform(number, location_dim))

    return TrainingPredictions(
        location_layers=[layer(5), layer(5)],
        things=DecodedMasks([uniform(4, 4, 6) for _ in range(3)], []),
        thing_class_logits=[logits(4, 3) for _ in range(2)],
        stuff=DecodedMasks([uniform(4, 4, 6) for _ in range(3)], []),
        stuff_class_logits=[logits(4) for _ in range(2)],
        proposals=layer(7),
    )
