"""Data that the parts of the model exchange: features, queries, predictions, targets.

`modeling` makes them, `losses` and `inference` read them, and `meta_arch` passes them on. `modeling`, `losses` and
`inference` do not import each other.
Letters in shapes: B batch, N queries, T tokens, D channels, L levels, K classes, G ground truths, H W pixels.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_convert

from psf.errors import UserError
from psf.ops.transfer import level_sizes

__all__ = [
    "MASK_FEATURE_DIM",
    "Candidates",
    "CategoryIds",
    "DecodedMasks",
    "FeatureTokens",
    "LocatedQueries",
    "LocationLayer",
    "MaskFeatures",
    "PanopticClasses",
    "PanopticSegmentation",
    "PanopticTargets",
    "Segment",
    "TrainingPredictions",
    "tight_boxes",
]

Size = tuple[int, int]
MASK_FEATURE_DIM = 32  # channels of `MaskFeatures`


class MaskFeatures(NamedTuple):
    """A map finer than all levels that refines masks; no query attends to it."""

    values: Tensor  # (B, MASK_FEATURE_DIM, h, w)
    padding_mask: Tensor | None  # (B, h, w), True where padded; None: nothing is padded


class FeatureTokens(NamedTuple):
    """The tokens F (section 3.2): feature maps of L levels, flattened row by row, finest level first."""

    tokens: Tensor  # (B, T, D)
    pos_embed: Tensor  # (B, T, D) sine encoding plus level embedding
    spatial_shapes: list[Size]  # L times (h, w); their products add up to T
    padding_mask: Tensor | None  # (B, T), True where padded; None: nothing is padded
    valid_ratios: Tensor  # (B, L, 2) share of a level's width and height that is not padding
    mask_features: MaskFeatures | None = None  # refine the masks; None: masks have the size of the finest level

    def finest(self, num_levels: int) -> FeatureTokens:
        """Only the first `num_levels` levels."""
        shapes = self.spatial_shapes[:num_levels]
        end = sum(h * w for h, w in shapes)
        padding_mask = None if self.padding_mask is None else self.padding_mask[:, :end]
        return FeatureTokens(
            self.tokens[:, :end], self.pos_embed[:, :end], shapes, padding_mask, self.valid_ratios[:, :num_levels]
        )


class LocationLayer(NamedTuple):
    """Predictions of the auxiliary head for one location decoder layer (section 3.3.2)."""

    class_logits: Tensor  # (B, N, K_things)
    # (B, N, 4) boxes_cxcywh_norm or (B, N, 2) centers of mass, in [0, 1] of the image without padding
    locations: Tensor


class LocatedQueries(NamedTuple):
    """Location-aware queries, and the predictions of the auxiliary head."""

    queries: Tensor  # (B, N, D)
    query_pos: Tensor | None  # (B, N, D) encoding of their predicted locations; None if the recipe has none
    layers: list[LocationLayer]  # all layers in training, the last or none at test
    boxes_cxcywh_norm: Tensor | None = None  # (B, N, 4) their predicted boxes, without gradient; None as `query_pos`
    proposals: LocationLayer | None = None  # predictions of the T tokens, N = T; None if queries are learned

    def pick(self, indices: Tensor) -> LocatedQueries:
        """Select queries, positions and boxes by (B, M) indices; the predictions of the heads are unchanged."""
        index = indices[..., None]
        parts = (self.query_pos, self.boxes_cxcywh_norm)
        query_pos, boxes = (None if x is None else torch.take_along_dim(x, index, dim=1) for x in parts)
        queries = torch.take_along_dim(self.queries, index, dim=1)
        return self._replace(queries=queries, query_pos=query_pos, boxes_cxcywh_norm=boxes)


class DecodedMasks(NamedTuple):
    """Output of a mask decoder (section 3.3.3).

    With all D_m layers, `refined_queries` has one entry per layer and `mask_scores` one more, of the tail. At test both
    have one entry, of the requested layer.
    """

    mask_scores: list[Tensor]  # (B, N, h, w) at the finest level; in [0, 1] after a sigmoid, >= 0 after a ReLU
    refined_queries: list[Tensor]  # (B, N, D)


class TrainingPredictions(NamedTuple):
    """Input of the losses, for a batch."""

    location_layers: list[LocationLayer]
    things: DecodedMasks  # of all layers; N = number of queries that the mask decoder received
    thing_class_logits: list[Tensor]  # (B, N, K_things) per layer; empty if the location decoder predicts the classes
    stuff: DecodedMasks  # of all layers; N = K_stuff
    stuff_class_logits: list[Tensor]  # (B, K_stuff) per layer
    proposals: LocationLayer | None = None  # of the T tokens; None if queries are learned


@dataclasses.dataclass(frozen=True, eq=False)
class PanopticTargets:
    """The ground truth of one image. Crowds and void are in no mask.

    Derived values are computed at their first use and kept: all layers of a training step use the same ones.
    """

    thing_classes: Tensor  # (G_things,) indices of thing classes, 0 .. K_things - 1
    thing_masks: Tensor  # (G_things, H, W) bool, at the padded size
    thing_boxes_xyxy_px: Tensor  # (G_things, 4) x1 and y1 exclusive
    stuff_classes: Tensor  # (G_stuff,) indices of stuff classes, 0 .. K_stuff - 1, all different
    stuff_masks: Tensor  # (G_stuff, H, W) bool
    image_size: Size  # height and width without padding

    @functools.cached_property
    def image_scale(self) -> Tensor:
        """(4,) width, height, width, height of the image without padding, in pixels."""
        return level_sizes([self.image_size], self.thing_boxes_xyxy_px)[0].repeat(2)

    @functools.cached_property
    def thing_boxes_cxcywh_norm(self) -> Tensor:
        """(G_things, 4) in [0, 1]."""
        return box_convert(self.thing_boxes_xyxy_px, "xyxy", "cxcywh") / self.image_scale

    @functools.cached_property
    def thing_mass_centers_norm(self) -> Tensor:
        """(G_things, 2) x and y of the mean pixel center of each mask, in [0, 1]."""
        masks = self.thing_masks
        columns, rows = masks.sum(1).float(), masks.sum(2).float()  # pixels per column, per row
        x = torch.arange(columns.shape[1], device=masks.device) + 0.5
        y = torch.arange(rows.shape[1], device=masks.device) + 0.5
        area = columns.sum(1).clamp(min=1)
        centers = torch.stack(((columns * x).sum(1) / area, (rows * y).sum(1) / area), dim=-1)
        return centers / self.image_scale[:2]


class Candidates(NamedTuple):
    """The N masks of one image that compete for its pixels: candidate things, then all stuff classes.

    With joint queries, things and stuff are in any order.
    """

    class_scores: Tensor  # (N,) probability p of the class, in [0, 1]
    class_indices: Tensor  # (N,) index among the thing classes, or among the stuff classes
    is_thing: Tensor  # (N,) bool
    mask_scores: Tensor  # (N, h, w) mask scores m of the padded image
    boxes_cxcywh_norm: Tensor | None  # (N, 4) of the things; None if the recipe predicts no boxes
    query_embeddings: Tensor | None = None  # (N, D) refined queries of the mask decoders; None if candidates were fused

    def select(self, index: Tensor) -> Candidates:
        """The candidates at `index` (bool mask or indices)."""
        boxes, queries = (None if x is None else x[index] for x in (self.boxes_cxcywh_norm, self.query_embeddings))
        return Candidates(
            self.class_scores[index],
            self.class_indices[index],
            self.is_thing[index],
            self.mask_scores[index],
            boxes,
            queries,
        )


class Segment(NamedTuple):
    """One segment of a panoptic map."""

    id: int  # its value in the map, from 1
    candidate: int  # position of its candidate in the Candidates
    score: float  # confidence
    area: int  # pixels


class PanopticSegmentation(NamedTuple):
    """A panoptic map: every pixel has the id of one segment, or 0 for none."""

    panoptic_seg: Tensor  # (H, W) int32
    segments: list[Segment]


class PanopticClasses(NamedTuple):
    """Contiguous ids of the model's thing classes and stuff classes, in the model's order.

    In Detectron2's panoptic metadata both kinds share one id space, in any order. In its "separated" metadata stuff has
    separate ids from 1, and 0 means all things together; the semantic scores then have a channel for 0.
    """

    thing_ids: tuple[int, ...]
    stuff_ids: tuple[int, ...]

    @classmethod
    def from_metadata(cls, metadata: Any) -> PanopticClasses | None:
        """Read the id maps of a dataset's Detectron2 metadata; None if it has none."""
        thing_map = metadata.get("thing_dataset_id_to_contiguous_id")
        stuff_map = metadata.get("stuff_dataset_id_to_contiguous_id")
        if thing_map is None and stuff_map is None:
            return None
        thing_map, stuff_map = thing_map or {}, stuff_map or {}
        thing_ids = tuple(sorted(set(thing_map.values())))
        # Metadata for semantic evaluation also lists the things as stuff.
        stuff_ids = tuple(sorted({contiguous for i, contiguous in stuff_map.items() if i not in thing_map}))
        if metadata.get("stuff_classes", [None])[:1] == ["things"]:
            stuff_ids = tuple(i for i in stuff_ids if i != 0)
        return cls(thing_ids, stuff_ids)

    @classmethod
    def from_counts(cls, num_things: int, num_stuff: int) -> PanopticClasses:
        """Ids from 0: things first, then stuff."""
        return cls(tuple(range(num_things)), tuple(range(num_things, num_things + num_stuff)))

    @property
    def is_separated(self) -> bool:
        """Whether an id can mean a thing class and a stuff class."""
        return bool(set(self.thing_ids) & set(self.stuff_ids))

    @property
    def semantic_channels(self) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """Channels of the thing classes and of the stuff classes in the semantic scores, and the number of channels."""
        if self.is_separated:
            return (0,) * len(self.thing_ids), self.stuff_ids, max(self.stuff_ids) + 1
        return self.thing_ids, self.stuff_ids, max(self.thing_ids + self.stuff_ids) + 1


class CategoryIds(NamedTuple):
    """Contiguous ids of the model -> the dataset's own category ids, for each kind."""

    things: dict[int, int]
    stuff: dict[int, int]

    @classmethod
    def from_metadata(cls, metadata: Any) -> CategoryIds:
        """Invert the id maps of a dataset's Detectron2 metadata; either map may be missing or empty."""
        maps = (getattr(metadata, f"{kind}_dataset_id_to_contiguous_id", None) or {} for kind in ("thing", "stuff"))
        return cls(*({contiguous: own for own, contiguous in one.items()} for one in maps))

    def category_id(self, contiguous_id: int, is_thing: bool) -> int:
        """The dataset's own id of a predicted class.

        Raises:
            UserError: if the metadata does not contain the class.
        """
        known = self.things if is_thing else self.stuff
        if contiguous_id not in known:
            raise UserError(
                f"a prediction has class {contiguous_id} as {'a thing' if is_thing else 'stuff'}, but the dataset's "
                f"metadata has {sorted(known)}; DATASETS.TEST must have the classes that the model was built for"
            )
        return known[contiguous_id]

    def coco_segments(self, segments_info: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Detectron2's segments in COCO's format: only `id` and the dataset's `category_id`.

        As in Detectron2, a segment without `isthing` already has the dataset's own category id.

        Raises:
            UserError: as `category_id`.
        """
        return [
            {
                "id": int(segment["id"]),
                "category_id": segment["category_id"]
                if segment.get("isthing") is None
                else self.category_id(segment["category_id"], bool(segment["isthing"])),
            }
            for segment in segments_info
        ]


def tight_boxes(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes from the rows and columns that each mask occupies.

    Args:
        masks: (N, H, W) bool, H and W at least 1.

    Returns:
        (N, 4) long x0 y0 x1 y1 in pixels, x1 and y1 exclusive; and (N,) whether a mask has any pixel. The box of an
        empty mask is meaningless.
    """
    edges = []
    # On a CPU `amax` of bytes is several times as fast as `any` of bools. A trace cannot store a view of another type.
    bits = masks.to(torch.uint8) if torch.jit.is_tracing() else masks.view(torch.uint8)
    for occupied in (bits.amax(1), bits.amax(2)):  # (N, W), (N, H)
        first = occupied.argmax(1)
        last = occupied.shape[1] - occupied.flip(1).argmax(1)
        edges.append((first, last))
    (x0, x1), (y0, y1) = edges
    return torch.stack((x0, y0, x1, y1), dim=1), occupied.amax(1).bool()
