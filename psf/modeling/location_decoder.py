"""Thing queries become location-aware (section 3.3.2)."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from psf.modeling.deformable_attention import DeformableAttention
from psf.modeling.feed_forward import FeedForward
from psf.modeling.heads import initial_class_bias, inverse_sigmoid, mlp_head
from psf.modeling.position_encoding import sine_point_encoding
from psf.modeling.proposals import QueryProposals
from psf.precision import at_least_float32
from psf.predictions import FeatureTokens, LocatedQueries, LocationLayer
from psf.registry import LOCATION_DECODER_REGISTRY

__all__ = ["LocationDecoder", "build_location_decoder"]

LOCATION_DIMS = {"box": 4, "mass_center": 2}  # numbers that the auxiliary head predicts


@LOCATION_DECODER_REGISTRY.register()
class LocationDecoder(nn.Module):
    """N_things learned queries look at one another and, at a few sampled points each, at the tokens.

    An auxiliary head (a class layer and a location MLP per decoder layer) tells in training what and where each query
    is, for L_det. At test it runs only where `head_at_test` asks for it.

    Args:
        dim: D.
        num_queries: N_things.
        num_classes: K_things.
        num_heads: heads of both attentions.
        num_feature_levels: L.
        num_layers: decoder layers; 0 hands the learned queries on, without any head.
        feedforward_dim: hidden channels of the FFN.
        num_points: P, sampled points per head and level.
        dropout: probability, in and after attention and in the FFN.
        target: "box" (cx cy w h) or "mass_center" (x y), what the head locates.
        box_refinement: each layer corrects the location of the one before, and samples there.
        head_at_test: the last layer's head runs at test too.
        encode_location: queries come with the sine encoding of the place that the last layer's head predicts.
        give_boxes: queries come with the boxes that the last layer's head predicts.
        two_stage: queries are the encoder's best proposals instead of learned ones, see `QueryProposals`.
    """

    @configurable
    def __init__(
        self,
        *,
        dim: int,
        num_queries: int,
        num_classes: int,
        num_heads: int,
        num_feature_levels: int,
        num_layers: int,
        feedforward_dim: int,
        num_points: int,
        dropout: float,
        target: str,
        box_refinement: bool,
        head_at_test: bool,
        encode_location: bool,
        give_boxes: bool = False,
        two_stage: bool = False,
    ):
        super().__init__()
        if target not in LOCATION_DIMS:
            raise ValueError(
                f'MODEL.PSF.LOCATION_DECODER.TARGET is "{target}": expected one of {sorted(LOCATION_DIMS)}'
            )
        self.box_refinement, self.encode_location, self.give_boxes = box_refinement, encode_location, give_boxes
        self.head_at_test = head_at_test or encode_location or give_boxes
        self.proposals = None
        if two_stage:
            self.proposals = QueryProposals(dim=dim, num_queries=num_queries, num_classes=num_classes)
        else:
            self.content = nn.Embedding(num_queries, dim)
        self.layers = nn.ModuleList(
            _LocationLayer(
                nn.MultiheadAttention(dim, num_heads, dropout=dropout, batch_first=True),
                DeformableAttention(dim=dim, num_heads=num_heads, num_levels=num_feature_levels, num_points=num_points),
                FeedForward(dim, feedforward_dim, dropout=dropout),
                dim,
                dropout,
            )
            for _ in range(num_layers)
        )
        if num_layers and not two_stage:
            self.position = nn.Embedding(num_queries, dim)
            self.reference_points = nn.Linear(dim, 2)
            nn.init.xavier_uniform_(self.reference_points.weight)
            nn.init.zeros_(self.reference_points.bias)
        self._build_heads(dim, num_classes, LOCATION_DIMS[target])

    @classmethod
    def from_config(cls, cfg: CfgNode, num_classes: int) -> dict[str, Any]:
        psf, node = cfg.MODEL.PSF, cfg.MODEL.PSF.LOCATION_DECODER
        return {
            "dim": psf.HIDDEN_DIM,
            "num_queries": psf.NUM_THING_QUERIES,
            "num_classes": num_classes,
            "num_heads": psf.NUM_HEADS,
            "num_feature_levels": psf.NUM_FEATURE_LEVELS,
            "num_layers": node.NUM_LAYERS,
            "feedforward_dim": node.FEEDFORWARD_DIM,
            "num_points": node.NUM_POINTS,
            "dropout": node.DROPOUT,
            "target": node.TARGET,
            "box_refinement": node.BOX_REFINEMENT,
            "head_at_test": psf.THING_CLASSIFIER == "location_decoder" or psf.TEST.INSTANCE.BOXES == "location_decoder",
            "encode_location": psf.MASK_DECODER.THING_POSITION == "located",
            "give_boxes": psf.MASK_DECODER.BOX_PRIOR,
            "two_stage": node.TWO_STAGE,
        }

    def _build_heads(self, dim: int, num_classes: int, location_dim: int) -> None:
        """One class layer and one location MLP per decoder layer; all start as copies of the first."""
        class_head = nn.Linear(dim, num_classes)
        nn.init.constant_(class_head.bias, initial_class_bias())
        location_head = mlp_head(dim, location_dim)
        self.class_heads = nn.ModuleList(copy.deepcopy(class_head) for _ in self.layers)
        self.location_heads = nn.ModuleList(copy.deepcopy(location_head) for _ in self.layers)
        for i, head in enumerate(self.location_heads):
            # Boxes start small (sigmoid(-2) of the image); with refinement the later layers start from the first's, and
            # with proposals all do from theirs.
            if self.proposals is None and (i == 0 or not self.box_refinement):
                nn.init.constant_(head[-1].bias[2:], -2.0)

    def forward(self, features: FeatureTokens) -> LocatedQueries:
        """Tokens of all L levels -> location-aware queries (B, N, D), with the head's words where they are wanted."""
        start = self._start(features)
        queries, position, references = start.queries, start.position, start.references
        if position is None or references is None:
            return LocatedQueries(queries, None, [])
        last = len(self.layers) - 1
        predictions = []
        for i, layer in enumerate(self.layers):
            queries = layer(queries, position, _in_padded_units(references, features.valid_ratios), features)
            wanted = self.training or (self.head_at_test and i == last)
            if wanted or (self.box_refinement and i < last):
                locations = self._locate(i, queries, references)
                if wanted:
                    predictions.append(LocationLayer(self.class_heads[i](queries), locations))
                if self.box_refinement:
                    references = locations.detach()
        located = boxes = None
        if self.encode_location:
            located = sine_point_encoding(predictions[-1].locations[..., :2].detach(), queries.shape[-1])
            located = located.to(queries.dtype)
        if self.give_boxes:
            boxes = predictions[-1].locations.detach()
        return LocatedQueries(queries, located, predictions, boxes, start.proposals)

    def _start(self, features: FeatureTokens) -> _Start:
        """The learned queries, or the encoder's proposals."""
        if self.proposals is not None:
            proposed = self.proposals(features)
            return _Start(proposed.queries, proposed.position, proposed.boxes_cxcywh_norm, proposed.all_tokens)
        batch = features.tokens.shape[0]
        queries = self.content.weight.expand(batch, -1, -1)
        if not self.layers:
            return _Start(queries, None, None, None)
        position = self.position.weight.expand(batch, -1, -1)
        with torch.autocast(queries.device.type, enabled=False):
            references = at_least_float32(self.reference_points(position).sigmoid())
        return _Start(queries, position, references, None)

    def _locate(self, i: int, queries: Tensor, references: Tensor) -> Tensor:
        """(B, N, 4 or 2) in [0, 1]: the head corrects the reference, in those of its numbers that there are.

        Without autocast: in half precision a box would be off by pixels.
        """
        with torch.autocast(queries.device.type, enabled=False):
            head = self.location_heads[i]
            raw = at_least_float32(head(queries.to(head[0].weight.dtype)))
        known = references.shape[-1]
        return torch.cat((raw[..., :known] + inverse_sigmoid(references), raw[..., known:]), dim=-1).sigmoid()


class _Start(NamedTuple):
    """What the first decoder layer is given."""

    queries: Tensor  # (B, N, D)
    position: Tensor | None  # (B, N, D); None without decoder layers
    references: Tensor | None  # (B, N, 2) points or (B, N, 4) boxes, in [0, 1] of the image without padding
    proposals: LocationLayer | None  # what all tokens predict


class _LocationLayer(nn.Module):
    def __init__(
        self,
        self_attention: nn.MultiheadAttention,
        cross_attention: DeformableAttention,
        feed_forward: FeedForward,
        dim: int,
        dropout: float,
    ):
        super().__init__()
        nn.init.xavier_uniform_(self_attention.out_proj.weight)
        self.dropout = nn.Dropout(dropout)
        self.self_attention, self.self_attention_norm = self_attention, nn.LayerNorm(dim)
        self.cross_attention, self.cross_attention_norm = cross_attention, nn.LayerNorm(dim)
        self.feed_forward, self.feed_forward_norm = feed_forward, nn.LayerNorm(dim)

    def forward(self, queries: Tensor, position: Tensor, references: Tensor, features: FeatureTokens) -> Tensor:
        placed = queries + position
        attended, _ = self.self_attention(placed, placed, queries, need_weights=False)
        queries = self.self_attention_norm(queries + self.dropout(attended))
        attended = self.cross_attention(
            queries + position, references, self.cross_attention.values(features), features.spatial_shapes
        )
        queries = self.cross_attention_norm(queries + self.dropout(attended))
        return self.feed_forward_norm(queries + self.feed_forward(queries))


def _in_padded_units(references: Tensor, valid_ratios: Tensor) -> Tensor:
    """(B, N, 2 or 4) of the image without padding, (B, L, 2) -> (B, N, L, 2 or 4) of each padded level."""
    ratios = valid_ratios.repeat(1, 1, references.shape[-1] // 2)
    return references[:, :, None] * ratios[:, None]


def build_location_decoder(cfg: CfgNode, num_classes: int) -> nn.Module:
    """The decoder that MODEL.PSF.LOCATION_DECODER.NAME names."""
    return LOCATION_DECODER_REGISTRY.get(cfg.MODEL.PSF.LOCATION_DECODER.NAME)(cfg, num_classes)
