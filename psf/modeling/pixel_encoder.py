"""The deformable encoder over multi-scale tokens (section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from psf.errors import UserError
from psf.modeling.deformable_attention import DeformableAttention, FeedForward
from psf.modeling.interfaces import PIXEL_ENCODER_REGISTRY
from psf.modeling.position_encoding import resize_padding_mask, sine_position_encoding, token_centers, valid_ratio
from psf.ops import AUTO, is_traced
from psf.structures import FeatureTokens

__all__ = ["DeformablePixelEncoder"]

TOKENS_AT_ONCE = 2048  # chunk size at test on a CPU: 8 MB of hidden channels in the FFN


@PIXEL_ENCODER_REGISTRY.register()
class DeformablePixelEncoder(nn.Module):
    """Encoder in which the tokens of all levels attend to one another, each at a few sampled points.

    Args:
        dim: D.
        num_heads: heads of the deformable attention.
        num_feature_levels: L.
        num_layers: encoder layers; 0: the tokens are the projected features.
        feedforward_dim: hidden channels of the FFN.
        num_points: P, sampled points per head and level.
        dropout: probability, after attention and in the FFN.
        msda: implementation of the deformable attention, as MODEL.PSF.MSDA.
    """

    @configurable
    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        num_feature_levels: int,
        num_layers: int,
        feedforward_dim: int,
        num_points: int,
        dropout: float,
        msda: str = AUTO,
    ):
        super().__init__()
        if dim % 4:
            raise UserError(f"MODEL.PSF.HIDDEN_DIM is {dim}: the sine encoding needs a multiple of 4")
        self.level_embed = nn.Parameter(torch.randn(num_feature_levels, dim))
        self.layers = nn.ModuleList(
            _EncoderLayer(
                DeformableAttention(
                    dim=dim, num_heads=num_heads, num_levels=num_feature_levels, num_points=num_points, msda=msda
                ),
                FeedForward(dim, feedforward_dim, dropout=dropout),
                dim,
                dropout,
            )
            for _ in range(num_layers)
        )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.MODEL.PSF
        return {
            "dim": node.HIDDEN_DIM,
            "num_heads": node.NUM_HEADS,
            "num_feature_levels": node.NUM_FEATURE_LEVELS,
            "num_layers": node.PIXEL_ENCODER.NUM_LAYERS,
            "feedforward_dim": node.PIXEL_ENCODER.FEEDFORWARD_DIM,
            "num_points": node.PIXEL_ENCODER.NUM_POINTS,
            "dropout": node.PIXEL_ENCODER.DROPOUT,
            "msda": node.MSDA,
        }

    def forward(self, levels: Sequence[Tensor], padding_mask: Tensor | None) -> FeatureTokens:
        """Encode a batch; see `psf.modeling.interfaces.PixelEncoderProtocol`."""
        features = self._flatten(levels, padding_mask)
        # (B, T, L, 2): the center of each token, in units of each padded level
        reference_points = token_centers(features)[:, :, None] * features.valid_ratios[:, None]
        for layer in self.layers:
            features = features._replace(tokens=layer(features, reference_points))
        return features

    def _flatten(self, levels: Sequence[Tensor], padding_mask: Tensor | None) -> FeatureTokens:
        shapes = [(x.shape[2], x.shape[3]) for x in levels]
        masks = [resize_padding_mask(padding_mask, x) for x in levels]
        pos_embed = [
            sine_position_encoding(mask, x.shape[1]).to(x.dtype) + embedding[:, None, None]
            for x, mask, embedding in zip(levels, masks, self.level_embed, strict=True)
        ]
        valid_ratios = torch.stack([valid_ratio(mask) for mask in masks], dim=1)
        return FeatureTokens(
            tokens=torch.cat([x.flatten(2).transpose(1, 2) for x in levels], dim=1),  # (B, D, h, w) -> (B, h*w, D)
            pos_embed=torch.cat([x.flatten(2).transpose(1, 2) for x in pos_embed], dim=1),
            spatial_shapes=shapes,
            padding_mask=None if padding_mask is None else torch.cat([mask.flatten(1) for mask in masks], dim=1),
            valid_ratios=valid_ratios.to(torch.promote_types(levels[0].dtype, torch.float32)),  # half is too coarse
        )


class _EncoderLayer(nn.Module):
    def __init__(self, attention: DeformableAttention, feed_forward: FeedForward, dim: int, dropout: float):
        super().__init__()
        self.attention, self.dropout, self.attention_norm = attention, nn.Dropout(dropout), nn.LayerNorm(dim)
        self.feed_forward, self.feed_forward_norm = feed_forward, nn.LayerNorm(dim)

    def forward(self, features: FeatureTokens, reference_points: Tensor) -> Tensor:
        values = self.attention.values(features)
        tokens, pos_embed, shapes = features.tokens, features.pos_embed, features.spatial_shapes
        if tokens.device.type != "cpu" or torch.is_grad_enabled() or is_traced() or torch.compiler.is_compiling():
            return self._refine(tokens, pos_embed, reference_points, values, shapes)
        # Given the values, tokens are independent: a chunk of tokens fits into the CPU's cache.
        parts = zip(*(x.split(TOKENS_AT_ONCE, dim=1) for x in (tokens, pos_embed, reference_points)), strict=True)
        return torch.cat([self._refine(t, p, r, values, shapes) for t, p, r in parts], dim=1)

    def _refine(
        self, tokens: Tensor, pos_embed: Tensor, reference_points: Tensor, values: Tensor, shapes: list[tuple[int, int]]
    ) -> Tensor:
        attended = self.attention(tokens + pos_embed, reference_points, values, shapes)
        tokens = self.attention_norm(tokens + self.dropout(attended))
        return self.feed_forward_norm(tokens + self.feed_forward(tokens))
