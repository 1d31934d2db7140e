"""The location decoder: makes thing queries location-aware (section 3.3.2).

The queries are learned, or selected from the tokens (`QueryProposals`, two-stage Deformable DETR, arXiv 2010.04159).
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from psf.errors import UserError
from psf.modeling.deformable_attention import DeformableAttention, FeedForward, initial_class_bias
from psf.modeling.interfaces import LOCATION_DECODER_REGISTRY
from psf.modeling.position_encoding import sine_point_encoding, token_centers
from psf.ops import AUTO
from psf.ops.precision import at_least_float32, without_autocast
from psf.ops.transfer import level_sizes
from psf.structures import FeatureTokens, LocatedQueries, LocationLayer

__all__ = ["LocationDecoder", "ProposedQueries", "QueryProposals", "inverse_sigmoid"]

LOCATION_DIMS = {"box": 4, "mass_center": 2}  # numbers that the auxiliary head predicts
ANCHOR_TOKENS = 4.0  # side of a token's initial box, in tokens of its level
NOT_PROPOSED = -1e4  # class logit of padded tokens: fits into float16, and its sigmoid is 0
NOT_A_PEAK = -1e3  # added to the logits of tokens that are not peaks: they rank after all peaks and before padding


@LOCATION_DECODER_REGISTRY.register()
class LocationDecoder(nn.Module):
    """N_things learned queries attend to one another, and to the tokens at a few sampled points.

    In training an auxiliary head (a class layer and a location MLP per decoder layer) predicts the class and location
    of each query, for L_det. At test it runs only with `head_at_test`.

    Args:
        dim: D.
        num_queries: N_things.
        num_classes: K_things.
        num_heads: heads of both attentions.
        num_feature_levels: L.
        num_layers: decoder layers; 0 returns the learned queries, without a head.
        feedforward_dim: hidden channels of the FFN.
        num_points: P, sampled points per head and level.
        dropout: probability, in and after attention and in the FFN.
        target: the head's prediction, "box" (cx cy w h) or "mass_center" (x y).
        box_refinement: each layer samples at the location predicted by the previous layer, and corrects it.
        head_at_test: the last layer's head runs at test too.
        encode_location: `query_pos` is the sine encoding of the location that the last layer's head predicts.
        give_boxes: `boxes_cxcywh_norm` are the boxes that the last layer's head predicts.
        two_stage: queries are the encoder's best proposals instead of learned queries, see `QueryProposals`.
        msda: implementation of the deformable attention, as MODEL.PSF.MSDA.
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
        msda: str = AUTO,
    ):
        super().__init__()
        if target not in LOCATION_DIMS:
            raise UserError(f'MODEL.PSF.LOCATION_DECODER.TARGET is "{target}": expected one of {sorted(LOCATION_DIMS)}')
        self.box_refinement, self.encode_location, self.give_boxes = box_refinement, encode_location, give_boxes
        self.head_at_test = head_at_test or encode_location or give_boxes
        self.proposals = None
        if two_stage:
            self.proposals = QueryProposals(dim=dim, num_queries=num_queries, num_classes=num_classes)
        else:
            self.query_feat = nn.Embedding(num_queries, dim)
        self.layers = nn.ModuleList(
            _LocationLayer(
                nn.MultiheadAttention(dim, num_heads, dropout=dropout, batch_first=True),
                DeformableAttention(
                    dim=dim, num_heads=num_heads, num_levels=num_feature_levels, num_points=num_points, msda=msda
                ),
                FeedForward(dim, feedforward_dim, dropout=dropout),
                dim,
                dropout,
            )
            for _ in range(num_layers)
        )
        if num_layers and not two_stage:
            self.query_pos = nn.Embedding(num_queries, dim)
            self.reference_points = nn.Linear(dim, 2)
            nn.init.xavier_uniform_(self.reference_points.weight)
            nn.init.zeros_(self.reference_points.bias)
        self._build_heads(dim, num_classes, LOCATION_DIMS[target])

    @classmethod
    def from_config(cls, cfg: CfgNode, num_classes: int) -> dict[str, Any]:
        model, node = cfg.MODEL.PSF, cfg.MODEL.PSF.LOCATION_DECODER
        head_users = (model.THING_CLASSIFIER, model.TEST.INSTANCE.BOXES)
        return {
            "dim": model.HIDDEN_DIM,
            "num_queries": model.NUM_THING_QUERIES,
            "num_classes": num_classes,
            "num_heads": model.NUM_HEADS,
            "num_feature_levels": model.NUM_FEATURE_LEVELS,
            "num_layers": node.NUM_LAYERS,
            "feedforward_dim": node.FEEDFORWARD_DIM,
            "num_points": node.NUM_POINTS,
            "dropout": node.DROPOUT,
            "target": node.TARGET,
            "box_refinement": node.BOX_REFINEMENT,
            "head_at_test": "location_decoder" in head_users,
            "encode_location": model.MASK_DECODER.THING_POSITION == "located",
            "give_boxes": model.MASK_DECODER.BOX_PRIOR,
            "two_stage": node.TWO_STAGE,
            "msda": model.MSDA,
        }

    def _build_heads(self, dim: int, num_classes: int, location_dim: int) -> None:
        """One class layer and one location MLP per decoder layer; all start as copies of the first."""
        class_head = nn.Linear(dim, num_classes)
        nn.init.constant_(class_head.bias, initial_class_bias())
        location_head = _MLPHead(dim, location_dim)
        location_heads = [copy.deepcopy(location_head) for _ in self.layers]
        self.class_embed = nn.ModuleList(copy.deepcopy(class_head) for _ in self.layers)
        self.bbox_embed = nn.ModuleList(location_heads)
        for i, head in enumerate(location_heads):
            # Boxes start small (sigmoid(-2) of the image). With refinement the later layers start from the first
            # layer's boxes; with proposals all layers start from the proposed boxes.
            if self.proposals is None and (i == 0 or not self.box_refinement):
                nn.init.constant_(head.last.bias[2:], -2.0)

    def forward(self, features: FeatureTokens) -> LocatedQueries:
        """Decode a batch; see `psf.modeling.interfaces.LocationDecoderProtocol`."""
        start = self._start(features)
        queries, query_pos, reference_points = start.queries, start.query_pos, start.reference_points
        if query_pos is None or reference_points is None:
            return LocatedQueries(queries, None, [])
        last = len(self.layers) - 1
        predictions = []
        for i, layer in enumerate(self.layers):
            queries = layer(queries, query_pos, _in_padded_units(reference_points, features.valid_ratios), features)
            has_predictions = self.training or (self.head_at_test and i == last)
            if has_predictions or (self.box_refinement and i < last):
                locations = self._locate(i, queries, reference_points)
                if has_predictions:
                    logits = without_autocast(self.class_embed[i], queries)  # they decide the matching
                    predictions.append(LocationLayer(logits, locations))
                if self.box_refinement:
                    reference_points = locations.detach()
        location_pos = boxes = None
        if self.encode_location:
            location_pos = sine_point_encoding(predictions[-1].locations[..., :2].detach(), queries.shape[-1])
            location_pos = location_pos.to(queries.dtype)
        if self.give_boxes:
            boxes = predictions[-1].locations.detach()
        return LocatedQueries(queries, location_pos, predictions, boxes, start.proposals)

    def _start(self, features: FeatureTokens) -> _Start:
        """The learned queries, or the encoder's proposals."""
        if self.proposals is not None:
            proposed = self.proposals(features)
            return _Start(proposed.queries, proposed.query_pos, proposed.boxes_cxcywh_norm, proposed.all_tokens)
        batch = features.tokens.shape[0]
        queries = self.query_feat.weight.expand(batch, -1, -1)
        if not self.layers:
            return _Start(queries, None, None, None)
        query_pos = self.query_pos.weight.expand(batch, -1, -1)
        reference_points = at_least_float32(without_autocast(self.reference_points, query_pos).sigmoid())
        return _Start(queries, query_pos, reference_points, None)

    def _locate(self, i: int, queries: Tensor, reference_points: Tensor) -> Tensor:
        """Locations (B, N, 4 or 2) in [0, 1]: the head's correction of the references, boxes or points.

        This runs without autocast: in half precision a box would be off by pixels.
        """
        raw = at_least_float32(without_autocast(self.bbox_embed[i], queries))
        dims = reference_points.shape[-1]
        return torch.cat((raw[..., :dims] + inverse_sigmoid(reference_points), raw[..., dims:]), dim=-1).sigmoid()


class _Start(NamedTuple):
    """Input of the first decoder layer."""

    queries: Tensor  # (B, N, D)
    query_pos: Tensor | None  # (B, N, D); None without decoder layers
    reference_points: Tensor | None  # (B, N, 2) points or (B, N, 4) boxes, in [0, 1] of the image without padding
    proposals: LocationLayer | None  # predictions of all tokens


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

    def forward(self, queries: Tensor, query_pos: Tensor, reference_points: Tensor, features: FeatureTokens) -> Tensor:
        positioned = queries + query_pos
        attended, _ = self.self_attention(positioned, positioned, queries, need_weights=False)
        queries = self.self_attention_norm(queries + self.dropout(attended))
        attended = self.cross_attention(
            queries + query_pos, reference_points, self.cross_attention.values(features), features.spatial_shapes
        )
        queries = self.cross_attention_norm(queries + self.dropout(attended))
        return self.feed_forward_norm(queries + self.feed_forward(queries))


def _in_padded_units(reference_points: Tensor, valid_ratios: Tensor) -> Tensor:
    """(B, N, 2 or 4) of the image without padding, (B, L, 2) -> (B, N, L, 2 or 4) of each padded level."""
    ratios = valid_ratios.repeat(1, 1, reference_points.shape[-1] // 2)
    return reference_points[:, :, None] * ratios[:, None]


class ProposedQueries(NamedTuple):
    """The selected tokens as queries, and the predictions of all tokens."""

    queries: Tensor  # (B, N, D)
    query_pos: Tensor  # (B, N, D), encoding of the proposed boxes
    boxes_cxcywh_norm: Tensor  # (B, N, 4), without gradient
    all_tokens: LocationLayer  # (B, T, K_things) and (B, T, 4)


class QueryProposals(nn.Module):
    """Every token predicts classes and a box; the most probable peaks become queries.

    A token with a more probable neighbor (3 x 3, on its level) ranks after all peaks, so that several tokens of one
    thing do not use up the queries of other things.

    Args:
        dim: D.
        num_queries: N_things; fewer if there are fewer tokens.
        num_classes: K_things.
    """

    def __init__(self, *, dim: int, num_queries: int, num_classes: int):
        super().__init__()
        self.num_queries = num_queries
        self.projection, self.norm = nn.Linear(dim, dim), nn.LayerNorm(dim)
        self.class_head = nn.Linear(dim, num_classes)
        nn.init.constant_(self.class_head.bias, initial_class_bias())
        self.box_head = _MLPHead(dim, 4)
        self.query_feat = nn.Linear(dim, dim)
        self.query_pos = nn.Linear(2 * dim, dim)
        for linear in (self.projection, self.query_feat, self.query_pos):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, features: FeatureTokens) -> ProposedQueries:
        """Tokens of all levels -> queries. Without autocast: classes and boxes decide which tokens are chosen."""
        tokens = self.norm(without_autocast(self.projection, features.tokens))
        logits = without_autocast(self.class_head, tokens)
        if features.padding_mask is not None:
            logits = logits.masked_fill(features.padding_mask[..., None], NOT_PROPOSED)
        raw = at_least_float32(without_autocast(self.box_head, tokens))
        boxes = (raw + inverse_sigmoid(_anchors(features))).sigmoid()
        indices = self._choose(at_least_float32(logits.detach()).amax(-1), features.spatial_shapes)[..., None]
        chosen_boxes = torch.take_along_dim(boxes.detach(), indices, dim=1)
        return ProposedQueries(
            queries=self.query_feat(torch.take_along_dim(tokens, indices, dim=1)),
            query_pos=self.encode(chosen_boxes),
            boxes_cxcywh_norm=chosen_boxes,
            all_tokens=LocationLayer(logits, boxes),
        )

    def encode(self, boxes_cxcywh_norm: Tensor) -> Tensor:
        """(B, N, 4) -> (B, N, D): the sine encodings of center and size, projected."""
        dim = self.query_feat.in_features
        center = sine_point_encoding(boxes_cxcywh_norm[..., :2], dim)
        size = sine_point_encoding(boxes_cxcywh_norm[..., 2:], dim)
        return self.query_pos(torch.cat((center, size), dim=-1).to(self.query_pos.weight.dtype))

    def _choose(self, scores: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
        """(B, T) best class logit of each token -> (B, N) indices of the selected tokens, best first."""
        ranked = []
        for level, (h, w) in zip(scores.split([h * w for h, w in shapes], dim=1), shapes, strict=True):
            highest = F.max_pool2d(level.view(-1, 1, h, w), kernel_size=3, stride=1, padding=1).flatten(1)
            ranked.append(torch.where(level >= highest, level, level + NOT_A_PEAK))
        return torch.cat(ranked, dim=1).topk(min(self.num_queries, scores.shape[1]), dim=1).indices


def _anchors(features: FeatureTokens) -> Tensor:
    """(B, T, 4) boxes_cxcywh_norm centered on the tokens, `ANCHOR_TOKENS` tokens wide and high."""
    centers = token_centers(features)
    in_pixels = level_sizes(features.spatial_shapes, centers)
    sizes = []
    for level, (h, w) in enumerate(features.spatial_shapes):
        in_tokens = features.valid_ratios[:, level] * in_pixels[level]
        sizes.append((ANCHOR_TOKENS / in_tokens)[:, None].expand(-1, h * w, -1))
    return torch.cat((centers, torch.cat(sizes, dim=1)), dim=-1)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """The logit of x in [0, 1], finite at its ends."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


class _MLPHead(nn.Sequential):
    """Three layers, D -> D -> D -> `num_outputs`, with ReLUs between; its outputs start at 0."""

    def __init__(self, dim: int, num_outputs: int):
        last = nn.Linear(dim, num_outputs)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        hidden = [layer for _ in range(2) for layer in (nn.Linear(dim, dim), nn.ReLU())]
        super().__init__(*hidden, last)

    @property
    def last(self) -> nn.Linear:
        """The output layer."""
        last = self[-1]
        assert isinstance(last, nn.Linear)
        return last
