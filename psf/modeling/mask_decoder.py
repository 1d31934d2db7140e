"""Queries become masks and classes: the attention maps of every layer are its masks (section 3.3.3)."""

from __future__ import annotations

from typing import Any, NamedTuple

from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from psf.modeling.feed_forward import FeedForward
from psf.modeling.heads import initial_class_bias
from psf.modeling.mask_attention import AttentionMemory, MaskAttention, MaskHead, box_prior
from psf.modeling.position_encoding import token_centres
from psf.predictions import DecodedMasks, FeatureTokens
from psf.registry import MASK_DECODER_REGISTRY

__all__ = ["MaskDecoder", "MaskDecoderDepth", "QueryClassifier", "build_mask_decoder"]

NORM_EPS = 1e-6


class MaskDecoderDepth(NamedTuple):
    """How one kind of queries is decoded."""

    num_layers: int  # D_m
    self_attention: bool
    has_boxes: bool = False  # the location decoder can say where each query is


@MASK_DECODER_REGISTRY.register()
class MaskDecoder(nn.Module):
    """D_m blocks of dense cross-attention; each gives a mask per query, and a mask-only tail after them the last one.

    Args:
        dim: D.
        num_heads: h, heads of the attentions; the mask head fuses h maps per level.
        num_levels: levels of the memory.
        num_layers: D_m, at least 1.
        self_attention: queries attend to one another at the start of each block.
        feedforward_dim: hidden channels of the MLP.
        mask_activation: "sigmoid" or "relu", from fused attention maps to mask scores.
        relu_gradient: of "relu": "plain", or "revive", see `psf.modeling.mask_activation`; "sigmoid" ignores it.
        ignore_padding: padded tokens are left out of the softmax and are 0 in the maps.
        position_in_stream: the queries' position is added to the residual stream (where it accumulates), else to the
            attention's queries alone.
        key_position: the tokens' position encoding is added to the keys.
        box_prior: queries come with boxes, which attention and masks start from, see `box_prior`.
    """

    @configurable
    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        num_levels: int,
        num_layers: int,
        self_attention: bool,
        feedforward_dim: int,
        mask_activation: str,
        relu_gradient: str,
        ignore_padding: bool,
        position_in_stream: bool,
        key_position: bool,
        box_prior: bool = False,
    ):
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"MODEL.PSF.MASK_DECODER: a mask decoder of {num_layers} layers; expected at least 1")
        self.ignore_padding, self.position_in_stream, self.key_position = (
            ignore_padding,
            position_in_stream,
            key_position,
        )

        def mask_head() -> MaskHead:
            return MaskHead(
                num_levels=num_levels,
                num_heads=num_heads,
                activation=mask_activation,
                relu_gradient=relu_gradient,
                box_prior=box_prior,
            )

        self.layers = nn.ModuleList(
            _MaskDecoderLayer(
                MaskAttention(dim=dim, num_heads=num_heads, box_prior=box_prior),
                mask_head(),
                FeedForward(dim, feedforward_dim, activation=nn.GELU()),
                _self_attention(dim, num_heads) if self_attention else None,
                dim,
            )
            for _ in range(num_layers)
        )
        self.tail = MaskAttention(dim=dim, num_heads=num_heads, mask_only=True)
        self.tail_head = mask_head()

    @classmethod
    def from_config(cls, cfg: CfgNode, depth: MaskDecoderDepth) -> dict[str, Any]:
        psf, node = cfg.MODEL.PSF, cfg.MODEL.PSF.MASK_DECODER
        return {
            "dim": psf.HIDDEN_DIM,
            "num_heads": psf.NUM_HEADS,
            "num_levels": len(psf.IN_FEATURES) + bool(psf.FINE_FEATURE),
            "num_layers": depth.num_layers,
            "self_attention": depth.self_attention,
            "feedforward_dim": node.FEEDFORWARD_DIM,
            "mask_activation": node.MASK_ACTIVATION,
            "relu_gradient": node.RELU_GRADIENT,
            "ignore_padding": node.IGNORE_PADDING,
            "position_in_stream": node.STUFF_POSITION == "stream",
            "key_position": node.KEY_POSITION,
            "box_prior": node.BOX_PRIOR and depth.has_boxes,
        }

    def forward(
        self,
        queries: Tensor,
        features: FeatureTokens,
        position: Tensor | None = None,
        *,
        boxes: Tensor | None = None,
        layer: int | None = None,
    ) -> DecodedMasks:
        """Decode the queries.

        Args:
            queries: (B, N, D).
            features: tokens of the memory's levels.
            position: (N, D) or (B, N, D), the queries' own position; None: they have none beside their content.
            boxes: (B, N, 4) boxes_cxcywh_norm of the queries, for a decoder with a box prior; None: it has none.
            layer: None: masks and queries of all layers. k from 1: those of layer min(k, D_m) alone. -1: the tail's
                mask with the last layer's queries.

        Raises:
            ValueError: if `layer` is 0 or below -1.
        """
        if layer is not None and (layer == 0 or layer < -1):
            raise ValueError(f"MODEL.PSF.TEST_LAYER is {layer}: expected a layer from 1, or -1 for the last")
        memory = self._memory(features, boxes)
        to_tail = layer is None or layer == -1
        depth = len(self.layers) if layer is None or layer == -1 else min(layer, len(self.layers))
        in_stream = self.position_in_stream
        masks, refined = [], []
        for i, block in enumerate(self.layers[:depth], start=1):
            if in_stream:
                queries = _placed(queries, position)
            with_masks = layer is None or (i == depth and not to_tail)
            queries, mask_scores = block(queries, None if in_stream else position, memory, with_masks=with_masks)
            if mask_scores is not None:
                masks.append(mask_scores)
            if layer is None or i == depth:
                refined.append(queries)
        if to_tail:
            q, keys = self.tail.queries_and_keys(_placed(queries, position), memory)
            masks.append(self.tail_head(q, keys, memory))
        return DecodedMasks(masks, refined)

    def _memory(self, features: FeatureTokens, boxes: Tensor | None) -> AttentionMemory:
        tokens = features.tokens
        return AttentionMemory(
            keys=tokens + features.position if self.key_position else tokens,
            values=tokens,
            spatial_shapes=features.spatial_shapes,
            padding_mask=features.padding_mask if self.ignore_padding else None,
            box_prior=None if boxes is None else box_prior(token_centres(features), boxes),
        )


class _MaskDecoderLayer(nn.Module):
    def __init__(
        self,
        attention: MaskAttention,
        mask_head: MaskHead,
        feed_forward: FeedForward,
        self_attention: nn.MultiheadAttention | None,
        dim: int,
    ):
        super().__init__()
        self.self_attention = self_attention
        if self_attention is not None:
            self.self_attention_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attention, self.attention_norm = attention, nn.LayerNorm(dim, eps=NORM_EPS)
        self.mask_head = mask_head
        self.feed_forward, self.feed_forward_norm = feed_forward, nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(
        self, queries: Tensor, position: Tensor | None, memory: AttentionMemory, *, with_masks: bool
    ) -> tuple[Tensor, Tensor | None]:
        """(B, N, D) -> refined queries (B, N, D) and mask scores (B, N, h, w), None unless asked for."""
        if self.self_attention is not None:
            placed = _placed(queries, position)
            attended, _ = self.self_attention(placed, placed, queries, need_weights=False)
            queries = self.self_attention_norm(queries + attended)
        q, keys = self.attention.queries_and_keys(_placed(queries, position), memory)
        mask_scores = self.mask_head(q, keys, memory) if with_masks else None
        queries = self.attention_norm(queries + self.attention(q, keys, memory))
        return self.feed_forward_norm(queries + self.feed_forward(queries)), mask_scores


class QueryClassifier(nn.Module):
    """One FC layer per mask decoder layer, on the refined queries (section 3.3.3).

    Args:
        dim: D.
        num_layers: D_m.
        num_outputs: K_things for thing queries; 1 for stuff queries, each of which knows its own class alone.
    """

    def __init__(self, dim: int, num_layers: int, num_outputs: int):
        super().__init__()
        layers = [nn.Linear(dim, num_outputs) for _ in range(num_layers)]
        for layer in layers:
            nn.init.constant_(layer.bias, initial_class_bias())
        self.layers = nn.ModuleList(layers)

    def forward(self, decoded: DecodedMasks, layer: int | None = None) -> list[Tensor]:
        """Class logits (B, N, num_outputs) of each of `decoded.refined_queries`, decoded with the same `layer`."""
        if layer is None:
            return [fc(q) for fc, q in zip(self.layers, decoded.refined_queries, strict=True)]
        index = len(self.layers) - 1 if layer == -1 else min(layer, len(self.layers)) - 1
        return [self.layers[index](q) for q in decoded.refined_queries]


def _placed(queries: Tensor, position: Tensor | None) -> Tensor:
    return queries if position is None else queries + position


def _self_attention(dim: int, num_heads: int) -> nn.MultiheadAttention:
    attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
    nn.init.xavier_uniform_(attention.out_proj.weight)
    for bias in (attention.in_proj_bias, attention.out_proj.bias):
        nn.init.uniform_(bias, -(dim**-0.5), dim**-0.5)  # as nn.Linear's, which MultiheadAttention sets to 0
    return attention


def build_mask_decoder(cfg: CfgNode, depth: MaskDecoderDepth) -> nn.Module:
    """The decoder that MODEL.PSF.MASK_DECODER.NAME names."""
    return MASK_DECODER_REGISTRY.get(cfg.MODEL.PSF.MASK_DECODER.NAME)(cfg, depth)
