"""The deformable encoder over multi-scale tokens (section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from psf.modeling.deformable_attention import DeformableAttention
from psf.modeling.feed_forward import FeedForward
from psf.modeling.position_encoding import sine_position_encoding, token_centres
from psf.ops import is_traced
from psf.predictions import FeatureTokens
from psf.registry import PIXEL_ENCODER_REGISTRY

__all__ = ["DeformablePixelEncoder", "build_pixel_encoder", "resize_padding_mask", "valid_ratio"]

TOKENS_AT_ONCE = 1024  # at test on a CPU: 4 MB between the layers of the FFN


@PIXEL_ENCODER_REGISTRY.register()
class DeformablePixelEncoder(nn.Module):
    """Tokens of all levels attend to one another, each at a few sampled points.

    Args:
        dim: D.
        num_heads: heads of the deformable attention.
        num_feature_levels: L.
        num_layers: encoder layers; 0 hands the projected features on.
        feedforward_dim: hidden channels of the FFN.
        num_points: P, sampled points per head and level.
        dropout: probability, after attention and in the FFN.
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
    ):
        super().__init__()
        if dim % 4:
            raise ValueError(f"MODEL.PSF.HIDDEN_DIM is {dim}: the sine encoding needs a multiple of 4")
        self.level_embedding = nn.Parameter(torch.randn(num_feature_levels, dim))
        self.layers = nn.ModuleList(
            _EncoderLayer(
                DeformableAttention(dim=dim, num_heads=num_heads, num_levels=num_feature_levels, num_points=num_points),
                FeedForward(dim, feedforward_dim, dropout=dropout),
                dim,
                dropout,
            )
            for _ in range(num_layers)
        )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        psf = cfg.MODEL.PSF
        return {
            "dim": psf.HIDDEN_DIM,
            "num_heads": psf.NUM_HEADS,
            "num_feature_levels": psf.NUM_FEATURE_LEVELS,
            "num_layers": psf.PIXEL_ENCODER.NUM_LAYERS,
            "feedforward_dim": psf.PIXEL_ENCODER.FEEDFORWARD_DIM,
            "num_points": psf.PIXEL_ENCODER.NUM_POINTS,
            "dropout": psf.PIXEL_ENCODER.DROPOUT,
        }

    def forward(self, levels: Sequence[Tensor], padding_mask: Tensor | None) -> FeatureTokens:
        """Projected maps -> tokens.

        Args:
            levels: L maps (B, D, h, w), finest first.
            padding_mask: (B, H, W) of the image batch, True where padded; None if no image is padded.
        """
        features = self._flatten(levels, padding_mask)
        # (B, T, L, 2): the centre of each token, in units of each padded level
        references = token_centres(features)[:, :, None] * features.valid_ratios[:, None]
        for layer in self.layers:
            features = features._replace(tokens=layer(features, references))
        return features

    def _flatten(self, levels: Sequence[Tensor], padding_mask: Tensor | None) -> FeatureTokens:
        shapes = [(x.shape[2], x.shape[3]) for x in levels]
        masks = [resize_padding_mask(padding_mask, x) for x in levels]
        position = [
            sine_position_encoding(mask, x.shape[1]).to(x.dtype) + embedding[:, None, None]
            for x, mask, embedding in zip(levels, masks, self.level_embedding, strict=True)
        ]
        valid_ratios = torch.stack([valid_ratio(mask) for mask in masks], dim=1)
        return FeatureTokens(
            tokens=torch.cat([x.flatten(2).transpose(1, 2) for x in levels], dim=1),  # (B, D, h, w) -> (B, h*w, D)
            position=torch.cat([x.flatten(2).transpose(1, 2) for x in position], dim=1),
            spatial_shapes=shapes,
            padding_mask=None if padding_mask is None else torch.cat([mask.flatten(1) for mask in masks], dim=1),
            valid_ratios=valid_ratios.to(torch.promote_types(levels[0].dtype, torch.float32)),  # half is too coarse
        )


class _EncoderLayer(nn.Module):
    def __init__(self, attention: DeformableAttention, feed_forward: FeedForward, dim: int, dropout: float):
        super().__init__()
        self.attention, self.dropout, self.attention_norm = attention, nn.Dropout(dropout), nn.LayerNorm(dim)
        self.feed_forward, self.feed_forward_norm = feed_forward, nn.LayerNorm(dim)

    def forward(self, features: FeatureTokens, references: Tensor) -> Tensor:
        values = self.attention.values(features)
        tokens, position, shapes = features.tokens, features.position, features.spatial_shapes
        if tokens.device.type != "cpu" or torch.is_grad_enabled() or is_traced() or torch.compiler.is_compiling():
            return self._refine(tokens, position, references, values, shapes)
        # With the values at hand each token is on its own: of a few at a time, all stays in the cache.
        parts = zip(*(x.split(TOKENS_AT_ONCE, dim=1) for x in (tokens, position, references)), strict=True)
        return torch.cat([self._refine(t, p, r, values, shapes) for t, p, r in parts], dim=1)

    def _refine(
        self, tokens: Tensor, position: Tensor, references: Tensor, values: Tensor, shapes: list[tuple[int, int]]
    ) -> Tensor:
        attended = self.attention(tokens + position, references, values, shapes)
        tokens = self.attention_norm(tokens + self.dropout(attended))
        return self.feed_forward_norm(tokens + self.feed_forward(tokens))


def resize_padding_mask(padding_mask: Tensor | None, level: Tensor) -> Tensor:
    """(B, H, W) -> (B, h, w), by the nearest pixel; all False where nothing is padded."""
    if padding_mask is None:
        return torch.zeros(level.shape[0], *level.shape[2:], dtype=torch.bool, device=level.device)
    return F.interpolate(padding_mask[:, None].float(), size=level.shape[2:])[:, 0].bool()


def valid_ratio(padding_mask: Tensor) -> Tensor:
    """(B, h, w) -> (B, 2): unpadded share of the first row and of the first column."""
    valid = (~padding_mask).float()
    return torch.stack((valid[:, 0, :].mean(1), valid[:, :, 0].mean(1)), dim=-1)


def build_pixel_encoder(cfg: CfgNode) -> nn.Module:
    """The encoder that MODEL.PSF.PIXEL_ENCODER.NAME names."""
    return PIXEL_ENCODER_REGISTRY.get(cfg.MODEL.PSF.PIXEL_ENCODER.NAME)(cfg)
