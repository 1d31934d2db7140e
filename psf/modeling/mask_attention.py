"""Cross-attention whose logits are also masks, and the light head that fuses them (section 3.3.3).

The refined query needs the softmax over all tokens, the mask needs the logits before it. They are computed apart: the
one by torch's fused attention, which never writes the logits down, the other only in layers whose mask is used.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from psf.modeling.mask_activation import mask_activation
from psf.ops import is_traced
from psf.precision import at_least_float32

__all__ = ["AttentionMemory", "MaskAttention", "MaskHead", "box_prior"]

BOX_PRIOR_FLOOR = 3.0  # outside of twice the ellipse all places are alike
MIN_HALF_SIDE = 0.002  # of a box, in units of the image: one that shrinks to nothing keeps a pixel or so


class AttentionMemory(NamedTuple):
    """What the queries attend to: L levels, finest first, flattened to T tokens."""

    keys: Tensor  # (B, T, D) input of the key projection
    values: Tensor  # (B, T, D) input of the value projection
    spatial_shapes: list[tuple[int, int]]
    padding_mask: Tensor | None  # (B, T), True for tokens that take no part; None: all do
    # (B, N, T) in [-BOX_PRIOR_FLOOR, 1], how well each token lies in each query's box; None: there are no boxes
    box_prior: Tensor | None = None


def box_prior(centres: Tensor, boxes_cxcywh_norm: Tensor) -> Tensor:
    """How well a token lies in a box: 1 at the centre, 0 on the inscribed ellipse, down to -BOX_PRIOR_FLOOR outside.

    A query attends to its box first, and its mask starts as that ellipse (in the spirit of SMCA, arXiv 2101.07448).

    Args:
        centres: (B, T, 2) x and y of the tokens, in units of the image.
        boxes_cxcywh_norm: (B, N, 4) in the same units.

    Returns:
        (B, N, T) float32.
    """
    centre, size = at_least_float32(boxes_cxcywh_norm)[:, :, None].split(2, dim=-1)  # (B, N, 1, 2) each
    half = (size / 2).clamp(min=MIN_HALF_SIDE)
    offset = (centres[:, None] - centre) / half  # (B, N, T, 2)
    return (1 - (offset * offset).sum(-1)).clamp(min=-BOX_PRIOR_FLOOR)


class MaskAttention(nn.Module):
    """Dense multi-head cross-attention.

    Args:
        dim: D.
        num_heads: h, divides dim.
        mask_only: only queries and keys are projected, for the tail that makes a mask and refines nothing.
        box_prior: the memory's box prior is added to the logits of all heads, times a learned weight.
    """

    def __init__(self, *, dim: int, num_heads: int, mask_only: bool = False, box_prior: bool = False):
        super().__init__()
        self.num_heads = num_heads
        self.query_proj, self.key_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        projections = [self.query_proj, self.key_proj]
        if not mask_only:
            self.value_proj, self.output_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
            projections += [self.value_proj, self.output_proj]
        for linear in projections:
            nn.init.xavier_uniform_(linear.weight)
        if box_prior and not mask_only:
            self.prior_weight = nn.Parameter(torch.ones(()))

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, N, D) -> (B, heads, N, D/heads)

    def queries_and_keys(self, queries: Tensor, memory: AttentionMemory) -> tuple[Tensor, Tensor]:
        """(B, heads, N, D/heads) and (B, heads, T, D/heads); the queries carry the scale (D/heads) ** -0.5."""
        q = self._split_heads(self.query_proj(queries))
        return q * q.shape[-1] ** -0.5, self._split_heads(self.key_proj(memory.keys))

    def forward(self, q: Tensor, keys: Tensor, memory: AttentionMemory) -> Tensor:
        """What the queries gather, (B, N, D), projected; `q` and `keys` from `queries_and_keys`."""
        values = self._split_heads(self.value_proj(memory.values))
        mask = None if memory.padding_mask is None else ~memory.padding_mask[:, None, None, :]
        if memory.box_prior is not None:
            bias = (self.prior_weight * memory.box_prior).to(q.dtype)[:, None]  # (B, 1, N, T), of all heads
            mask = bias if mask is None else bias.masked_fill(~mask, -torch.inf)
        gathered = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=1.0)
        return self.output_proj(gathered.transpose(1, 2).flatten(2))  # (B, heads, N, D/heads) -> (B, N, D)


class MaskHead(nn.Module):
    """A_3, A_4, A_5 -> one mask: the heads of each level are mixed, all levels fused at the finest one's size.

    With 8 heads and 3 levels, 241 numbers: the paper's "200 parameters".

    Args:
        num_levels: L.
        num_heads: h.
        activation: "sigmoid" or "relu".
        relu_gradient: "plain" or "revive", see `psf.modeling.mask_activation`; "sigmoid" ignores it.
        box_prior: the memory's box prior at the finest level is added to the fused map, times a learned weight.
    """

    def __init__(
        self,
        *,
        num_levels: int,
        num_heads: int,
        activation: str,
        relu_gradient: str = "plain",
        box_prior: bool = False,
    ):
        super().__init__()
        self.activation = mask_activation(activation, relu_gradient)
        self.level_mix = nn.ModuleList(nn.Linear(num_heads, num_heads) for _ in range(num_levels))
        self.fuse = nn.Linear(num_levels * num_heads, 1)
        for linear in (*self.level_mix, self.fuse):
            nn.init.xavier_uniform_(linear.weight)
        if box_prior:
            self.prior_weight = nn.Parameter(torch.ones(()))

    def forward(self, q: Tensor, keys: Tensor, memory: AttentionMemory) -> Tensor:
        """Mask scores (B, N, h, w) from the attention logits of `q` (B, heads, N, d) and `keys` (B, heads, T, d).

        With many queries the attention maps, of N x T x h numbers, outgrow the keys: those of all layers are not kept,
        and backward makes them again.
        """
        num_queries, head_dim = q.shape[2:]
        if torch.is_grad_enabled() and num_queries > head_dim and not is_traced():
            return checkpoint(self._fuse, q, keys, memory, use_reentrant=False, preserve_rng_state=False)
        return self._fuse(q, keys, memory)

    def _fuse(self, q: Tensor, keys: Tensor, memory: AttentionMemory) -> Tensor:
        """As `forward`.

        Fusing is linear and upsampling acts on each map alone, so each level is fused to one map first and that one is
        upsampled: the same numbers as upsampling h maps and fusing then, for a fraction of the work.
        """
        shapes = memory.spatial_shapes
        sizes = [h * w for h, w in shapes]
        level_keys = keys.split(sizes, dim=2)
        level_padding = [None] * len(sizes) if memory.padding_mask is None else memory.padding_mask.split(sizes, dim=1)
        batch = len(keys)
        fuse_weights = self.fuse.weight.view(len(sizes), 1, -1)
        fused: Tensor = self.fuse.bias
        for level, (mix, (h, w)) in enumerate(zip(self.level_mix, shapes, strict=True)):
            logits = q @ level_keys[level].transpose(-1, -2)  # (B, heads, N, h*w), the attention maps A
            weights, bias = mix.weight.expand(batch, -1, -1), mix.bias[:, None]
            mixed = torch.baddbmm(bias, weights, logits.flatten(2))  # over heads: (B, heads, N*h*w)
            mixed = F.relu(mixed, inplace=True)
            level_map = (fuse_weights[level] @ mixed).view(batch, -1, h, w)  # (B, N, h, w)
            padding = level_padding[level]
            if padding is not None:
                level_map = level_map.masked_fill(padding.view(-1, 1, h, w), 0.0)
            if level:
                level_map = F.interpolate(level_map, size=shapes[0], mode="bilinear", align_corners=False)
            fused = fused + level_map
        if memory.box_prior is not None:
            finest = memory.box_prior[..., : sizes[0]].unflatten(-1, shapes[0])  # (B, N, T) -> (B, N, h, w)
            fused = fused + self.prior_weight * finest
        scores = self.activation(fused)
        if level_padding[0] is not None:
            scores = scores.masked_fill(level_padding[0].view(-1, 1, *shapes[0]), 0.0)
        return scores
