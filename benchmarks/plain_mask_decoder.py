"""A plain mask decoder that follows the paper's section 3.3.3 and the released model step by step.

Nothing is optimized for speed: every attention map is materialized, split into levels, upsampled and fused. The tests
use it as an oracle, the benchmarks as a baseline.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psf.modeling import MaskDecoder
from psf.modeling.mask_decoder import MaskAttention, MaskHead
from psf.structures import DecodedMasks, FeatureTokens

__all__ = ["PlainMaskDecoder", "PlainResult", "plain_attention", "plain_decode", "plain_logits", "plain_mask"]


def _heads(x: Tensor, num_heads: int) -> Tensor:
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)  # (B, N, D) -> (B, heads, N, D/heads)


def plain_logits(attention: MaskAttention, queries: Tensor, key_input: Tensor) -> Tensor:
    """(B, N, heads, T) scaled attention logits."""
    q = _heads(attention.query_proj(queries), attention.num_heads)
    k = _heads(attention.key_proj(key_input), attention.num_heads)
    return (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).transpose(1, 2)


def plain_attention(attention: MaskAttention, logits: Tensor, tokens: Tensor, padding: Tensor | None) -> Tensor:
    """Attention output: the values weighted by the softmax of the logits over all tokens that are not padding."""
    if padding is not None:
        logits = logits.masked_fill(padding[:, None, None], float("-inf"))
    values = _heads(attention.value_proj(tokens), attention.num_heads)
    gathered = logits.softmax(-1).transpose(1, 2) @ values  # (B, heads, N, D/heads)
    return attention.output_proj(gathered.transpose(1, 2).flatten(2))


def plain_mask(head: MaskHead, logits: Tensor, shapes: list[tuple[int, int]], padding: Tensor | None) -> Tensor:
    """(B, N, h, w): mix the heads of each level, upsample all channels, concatenate, fuse."""
    batch, num_queries, num_heads, _ = logits.shape
    maps, start = [], 0
    mix: Any  # nn.Linear
    for mix, (h, w) in zip(head.level_mix, shapes, strict=True):
        level = logits[..., start : start + h * w]
        mixed = torch.relu(F.linear(level.transpose(2, 3), mix.weight, mix.bias))  # (B, N, h*w, heads)
        if padding is not None:
            mixed = mixed.masked_fill(padding[:, None, start : start + h * w, None], 0.0)
        image = mixed.transpose(2, 3).reshape(batch * num_queries, num_heads, h, w)
        if (h, w) != shapes[0]:
            image = F.interpolate(image, size=shapes[0], mode="bilinear", align_corners=False)
        maps.append(image)
        start += h * w
    fused = F.linear(torch.cat(maps, dim=1).permute(0, 2, 3, 1), head.fuse.weight, head.fuse.bias)
    scores = head.activation(fused).view(batch, num_queries, *shapes[0])
    if padding is not None:
        h, w = shapes[0]
        scores = scores.masked_fill(padding[:, None, : h * w].view(batch, 1, h, w), 0.0)
    return scores


class PlainResult(NamedTuple):
    """All outputs of a decoder."""

    block_masks: list[Tensor]
    queries: list[Tensor]
    tail_mask: Tensor


def plain_decode(decoder: MaskDecoder, x: Tensor, features: FeatureTokens, query_pos: Tensor | None) -> PlainResult:
    """Block by block: [self-attention, norm], cross-attention, norm, MLP, norm; then the tail."""
    padding = features.padding_mask if decoder.ignore_padding else None
    keys = features.tokens + features.pos_embed if decoder.key_position else features.tokens
    shapes, masks, queries = features.spatial_shapes, [], []

    def with_position(x: Tensor) -> Tensor:
        return x if query_pos is None else x + query_pos

    block: Any  # a layer of MaskDecoder; nn.ModuleList loses the type
    for block in decoder.layers:
        if decoder.position_in_stream:
            x = with_position(x)
        if block.self_attention is not None:
            placed = x if decoder.position_in_stream else with_position(x)
            x = block.self_attention_norm(x + plain_self_attention(block.self_attention, placed, x))
        placed = x if decoder.position_in_stream else with_position(x)
        logits = plain_logits(block.attention, placed, keys)
        masks.append(plain_mask(block.mask_head, logits, shapes, padding))
        x = block.attention_norm(x + plain_attention(block.attention, logits, features.tokens, padding))
        hidden = F.gelu(block.feed_forward.fc1(x))
        x = block.feed_forward_norm(x + block.feed_forward.fc2(hidden))
        queries.append(x)
    tail_logits = plain_logits(decoder.tail, with_position(x), keys)
    return PlainResult(masks, queries, plain_mask(decoder.tail_head, tail_logits, shapes, padding))


def plain_self_attention(attention: nn.MultiheadAttention, placed: Tensor, values: Tensor) -> Tensor:
    """Queries and keys from `placed`, values from `values`."""
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    q, k, v = (
        F.linear(x, w, b).unflatten(-1, (attention.num_heads, -1))
        for x, w, b in zip((placed, placed, values), weights, biases, strict=True)
    )
    logits = torch.einsum("bnhd,bmhd->bhnm", q, k) * q.shape[-1] ** -0.5
    return attention.out_proj(torch.einsum("bhnm,bmhd->bnhd", logits.softmax(-1), v).flatten(2))


class PlainMaskDecoder(nn.Module):
    """The plain decoder with a MaskDecoder's weights and interface, which turns a model into its own baseline.

    Like the released code, it computes all masks even if only the last one is requested.
    """

    def __init__(self, decoder: MaskDecoder):
        super().__init__()
        self.decoder = decoder

    def forward(
        self,
        queries: Tensor,
        features: FeatureTokens,
        query_pos: Tensor | None = None,
        *,
        boxes: None = None,
        layer: int | None = None,
    ) -> DecodedMasks:
        """As MaskDecoder's, with `layer` None or -1, and without boxes."""
        if layer not in (None, -1):
            raise ValueError(f"layer is {layer}: the plain decoder supports None (all) and -1 (the last)")
        plain = plain_decode(self.decoder, queries, features, query_pos)
        decoded = DecodedMasks([*plain.block_masks, plain.tail_mask], plain.queries)
        return decoded if layer is None else DecodedMasks(decoded.mask_scores[-1:], decoded.refined_queries[-1:])
