"""What travels between the rooms of the model: features, queries, predictions, targets.

`modeling` makes them, `losses` and `inference` read them, `meta_arch` carries them; none of these imports another.
Letters in shapes: B batch, N queries, T tokens, D channels, L levels, K classes, G ground truths, H W pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Candidates",
    "DecodedMasks",
    "FeatureTokens",
    "LocatedQueries",
    "LocationLayer",
    "PanopticSegmentation",
    "PanopticTargets",
    "Segment",
    "TrainingPredictions",
]

Size = tuple[int, int]


class FeatureTokens(NamedTuple):
    """The tokens F (section 3.2): feature maps of L levels, flattened row by row, finest level first."""

    tokens: Tensor  # (B, T, D)
    position: Tensor  # (B, T, D) sine encoding plus level embedding
    spatial_shapes: list[Size]  # L times (h, w); their products add up to T
    padding_mask: Tensor | None  # (B, T), True where padded; None: nothing is padded
    valid_ratios: Tensor  # (B, L, 2) share of a level's width and height that is not padding

    def finest(self, num_levels: int) -> FeatureTokens:
        """The first `num_levels` levels alone."""
        shapes = self.spatial_shapes[:num_levels]
        end = sum(h * w for h, w in shapes)
        padding_mask = None if self.padding_mask is None else self.padding_mask[:, :end]
        return FeatureTokens(
            self.tokens[:, :end], self.position[:, :end], shapes, padding_mask, self.valid_ratios[:, :num_levels]
        )


class LocationLayer(NamedTuple):
    """What the auxiliary head says of one location decoder layer (section 3.3.2)."""

    class_logits: Tensor  # (B, N, K_things)
    # (B, N, 4) boxes_cxcywh_norm, or (B, N, 2) centres of mass; in [0, 1], of the image without padding
    locations: Tensor


class LocatedQueries(NamedTuple):
    """Location-aware queries, and what the auxiliary head says of them."""

    queries: Tensor  # (B, N, D)
    position: Tensor | None  # (B, N, D) encoding of their predicted places; None where the recipe has none
    layers: list[LocationLayer]  # all layers in training, the last or none at test
    boxes_cxcywh_norm: Tensor | None = None  # (B, N, 4) their predicted boxes, without gradient; None as `position`
    proposals: LocationLayer | None = None  # what each of the T tokens predicts, N = T; None where queries are learned

    def pick(self, rows: Tensor) -> LocatedQueries:
        """Queries, positions and boxes of the (B, M) rows; what the heads predict stays whole."""
        index = rows[..., None]
        parts = (self.position, self.boxes_cxcywh_norm)
        position, boxes = (None if x is None else torch.take_along_dim(x, index, dim=1) for x in parts)
        queries = torch.take_along_dim(self.queries, index, dim=1)
        return self._replace(queries=queries, position=position, boxes_cxcywh_norm=boxes)


class DecodedMasks(NamedTuple):
    """What a mask decoder makes of its queries (section 3.3.3).

    With all D_m layers: `refined_queries` has one entry a layer and `mask_scores` one more, the tail's. At test: one
    each, those of the layer that was asked for.
    """

    mask_scores: list[Tensor]  # (B, N, h, w) at the finest level; in [0, 1] after a sigmoid, >= 0 after a ReLU
    refined_queries: list[Tensor]  # (B, N, D)


class TrainingPredictions(NamedTuple):
    """All that the losses look at, for a batch."""

    location_layers: list[LocationLayer]
    things: DecodedMasks  # of all layers; N = the queries that the mask decoder was given
    thing_class_logits: list[Tensor]  # (B, N, K_things) per layer; empty where the location decoder names the classes
    stuff: DecodedMasks  # of all layers; N = K_stuff
    stuff_class_logits: list[Tensor]  # (B, K_stuff) per layer
    proposals: LocationLayer | None = None  # of the T tokens; None where queries are learned


class PanopticTargets(NamedTuple):
    """The truth of one image. Crowds and void are in no mask."""

    thing_classes: Tensor  # (G_things,) indices of thing classes, 0 .. K_things - 1
    thing_masks: Tensor  # (G_things, H, W) bool, at the padded size
    thing_boxes_xyxy_px: Tensor  # (G_things, 4) x1 and y1 exclusive
    stuff_classes: Tensor  # (G_stuff,) indices of stuff classes, 0 .. K_stuff - 1, no two the same
    stuff_masks: Tensor  # (G_stuff, H, W) bool
    image_size: Size  # height and width without padding


class Candidates(NamedTuple):
    """The masks of one image that compete for its pixels: N = candidate things, then all stuff classes.

    With joint queries, N of both kinds in any order.
    """

    class_scores: Tensor  # (N,) probability p of the class, in [0, 1]
    class_indices: Tensor  # (N,) index among the thing classes, or among the stuff classes
    is_thing: Tensor  # (N,) bool
    mask_scores: Tensor  # (N, h, w) mask scores m of the padded image
    boxes_cxcywh_norm: Tensor | None  # (N, 4) of the things; None where the recipe predicts none

    def select(self, index: Tensor) -> Candidates:
        """Those that `index` (bool mask or positions) picks."""
        boxes = None if self.boxes_cxcywh_norm is None else self.boxes_cxcywh_norm[index]
        return Candidates(
            self.class_scores[index], self.class_indices[index], self.is_thing[index], self.mask_scores[index], boxes
        )


class Segment(NamedTuple):
    """One segment of a panoptic map."""

    id: int  # its value in the map, from 1
    candidate: int  # position in the Candidates that it was made from
    score: float  # confidence
    area: int  # pixels


class PanopticSegmentation(NamedTuple):
    """A panoptic map: every pixel belongs to one segment or, 0, to none."""

    segment_map: Tensor  # (H, W) int32
    segments: list[Segment]
