"""The mask decoder: turns queries into masks and classes; each layer's attention maps give its masks (section 3.3.3).

Refined queries need the softmax over all tokens, masks need the logits before it. The two are computed separately: the
first by torch's fused attention, which never stores the logits, the second only in layers whose mask is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from psf.errors import UserError
from psf.modeling.deformable_attention import FeedForward, initial_class_bias
from psf.modeling.interfaces import MASK_DECODER_REGISTRY, MaskDecoderDepth
from psf.modeling.position_encoding import token_centers
from psf.ops import is_traced
from psf.ops.precision import at_least_float32, without_autocast
from psf.structures import MASK_FEATURE_DIM, DecodedMasks, FeatureTokens, MaskFeatures

__all__ = [
    "AttentionMemory",
    "MaskAttention",
    "MaskDecoder",
    "MaskHead",
    "QueryClassifier",
    "box_prior",
    "mask_activation",
    "revivable_relu",
]

NORM_EPS = 1e-6
ACTIVATIONS = ("relu", "sigmoid")
RELU_GRADIENTS = ("plain", "revive")
# Share of a score-raising gradient that passes below 0. The dice gradient of an empty mask is strong and raises scores;
# that of a mask that covers the image lowers them but is tiny, as it has the squared area in the denominator. With a
# slope of 1 or 0.1 the first outweighs the second, and masks grow over the whole image.
REVIVE_SLOPE = 0.01
BOX_PRIOR_FLOOR = 3.0  # beyond twice the ellipse's radius the prior is constant
MIN_HALF_SIDE = 0.002  # of a box, in units of the image: about a pixel, for boxes that shrink to nothing


@MASK_DECODER_REGISTRY.register()
class MaskDecoder(nn.Module):
    """D_m blocks of dense cross-attention; each makes a mask per query, and a mask-only tail makes the last masks.

    Args:
        dim: D.
        num_heads: h, heads of the attentions; the mask head fuses h maps per level.
        num_levels: levels of the memory.
        num_layers: D_m, at least 1.
        self_attention: queries attend to one another at the start of each block.
        feedforward_dim: hidden channels of the MLP.
        mask_activation: "sigmoid" or "relu", from fused attention maps to mask scores.
        relu_gradient: gradient of "relu", "plain" or "revive", see `revivable_relu`; "sigmoid" ignores it.
        ignore_padding: the softmax excludes padded tokens, and masks are 0 there.
        position_in_stream: the queries' position is added to the residual stream (where it accumulates), else only to
            the attention's queries.
        key_position: the tokens' position encoding is added to the keys.
        box_prior: queries come with boxes, and attention and masks start from these, see `box_prior`.
        mask_features: the tokens come with `MaskFeatures`, which refine the masks at their size.
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
        mask_features: bool = False,
    ):
        super().__init__()
        if num_layers < 1:
            raise UserError(f"MODEL.PSF.MASK_DECODER: a mask decoder has {num_layers} layers; expected at least 1")
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
                dim=dim if mask_features else None,
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
        model, node = cfg.MODEL.PSF, cfg.MODEL.PSF.MASK_DECODER
        return {
            "dim": model.HIDDEN_DIM,
            "num_heads": model.NUM_HEADS,
            "num_levels": len(model.IN_FEATURES) + bool(model.FINE_FEATURE),
            "num_layers": depth.num_layers,
            "self_attention": depth.self_attention,
            "feedforward_dim": node.FEEDFORWARD_DIM,
            "mask_activation": node.MASK_ACTIVATION,
            "relu_gradient": node.RELU_GRADIENT,
            "ignore_padding": node.IGNORE_PADDING,
            "position_in_stream": node.STUFF_POSITION == "stream",
            "key_position": node.KEY_POSITION,
            "box_prior": node.BOX_PRIOR and depth.has_boxes,
            "mask_features": bool(model.MASK_FEATURE),
        }

    def forward(
        self,
        queries: Tensor,
        features: FeatureTokens,
        query_pos: Tensor | None = None,
        *,
        boxes: Tensor | None = None,
        layer: int | None = None,
    ) -> DecodedMasks:
        """Decode the queries; see `psf.modeling.interfaces.MaskDecoderProtocol`.

        The tail makes one more mask than the D_m layers; `layer` -1 returns that mask with the last layer's queries.

        Raises:
            UserError: if `layer` is 0 or below -1.
        """
        if layer is not None and (layer == 0 or layer < -1):
            raise UserError(f"MODEL.PSF.TEST_LAYER is {layer}: expected a layer from 1, or -1 for the last")
        memory = self._memory(features, boxes)
        to_tail = layer is None or layer == -1
        depth = len(self.layers) if layer is None or layer == -1 else min(layer, len(self.layers))
        in_stream = self.position_in_stream
        masks, refined = [], []
        for i, block in enumerate(self.layers[:depth], start=1):
            if in_stream:
                queries = _add_position(queries, query_pos)
            with_masks = layer is None or (i == depth and not to_tail)
            queries, mask_scores = block(queries, None if in_stream else query_pos, memory, with_masks=with_masks)
            if mask_scores is not None:
                masks.append(mask_scores)
            if layer is None or i == depth:
                refined.append(queries)
        if to_tail:
            q, keys = self.tail.queries_and_keys(_add_position(queries, query_pos), memory)
            masks.append(self.tail_head(q, keys, memory))
        return DecodedMasks(masks, refined)

    def _memory(self, features: FeatureTokens, boxes: Tensor | None) -> AttentionMemory:
        tokens = features.tokens
        return AttentionMemory(
            keys=tokens + features.pos_embed if self.key_position else tokens,
            values=tokens,
            spatial_shapes=features.spatial_shapes,
            padding_mask=features.padding_mask if self.ignore_padding else None,
            box_prior=None if boxes is None else box_prior(token_centers(features), boxes),
            mask_features=features.mask_features,
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
        self, queries: Tensor, query_pos: Tensor | None, memory: AttentionMemory, *, with_masks: bool
    ) -> tuple[Tensor, Tensor | None]:
        """(B, N, D) -> refined queries (B, N, D) and, if needed, mask scores (B, N, h, w), else None."""
        if self.self_attention is not None:
            positioned = _add_position(queries, query_pos)
            attended, _ = self.self_attention(positioned, positioned, queries, need_weights=False)
            queries = self.self_attention_norm(queries + attended)
        q, keys = self.attention.queries_and_keys(_add_position(queries, query_pos), memory)
        mask_scores = self.mask_head(q, keys, memory) if with_masks else None
        queries = self.attention_norm(queries + self.attention(q, keys, memory))
        return self.feed_forward_norm(queries + self.feed_forward(queries)), mask_scores


class QueryClassifier(nn.Module):
    """One FC layer per mask decoder layer, on the refined queries (section 3.3.3); computed without autocast.

    Args:
        dim: D.
        num_layers: D_m.
        num_outputs: K_things for thing queries; 1 for stuff queries, as each has one class.
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
            return [without_autocast(fc, q) for fc, q in zip(self.layers, decoded.refined_queries, strict=True)]
        index = len(self.layers) - 1 if layer == -1 else min(layer, len(self.layers)) - 1
        return [without_autocast(self.layers[index], q) for q in decoded.refined_queries]


def _add_position(queries: Tensor, query_pos: Tensor | None) -> Tensor:
    return queries if query_pos is None else queries + query_pos


def _self_attention(dim: int, num_heads: int) -> nn.MultiheadAttention:
    attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
    nn.init.xavier_uniform_(attention.out_proj.weight)
    for bias in (attention.in_proj_bias, attention.out_proj.bias):
        nn.init.uniform_(bias, -(dim**-0.5), dim**-0.5)  # as in nn.Linear; MultiheadAttention sets it to 0
    return attention


class AttentionMemory(NamedTuple):
    """The tokens that the queries attend to: L levels, finest first, flattened to T tokens."""

    keys: Tensor  # (B, T, D) input of the key projection
    values: Tensor  # (B, T, D) input of the value projection
    spatial_shapes: list[tuple[int, int]]
    padding_mask: Tensor | None  # (B, T), True for tokens that are not attended to; None: all are
    # (B, N, T) in [-BOX_PRIOR_FLOOR, 1], see `box_prior`; None: there are no boxes
    box_prior: Tensor | None = None
    mask_features: MaskFeatures | None = None  # refine the masks


def box_prior(centers: Tensor, boxes_cxcywh_norm: Tensor) -> Tensor:
    """Prior of each token in each box: 1 at the center, 0 on the inscribed ellipse, down to -BOX_PRIOR_FLOOR outside.

    At the start of training a query attends to its box, and its mask is that ellipse (as in SMCA, arXiv 2101.07448).

    Args:
        centers: (B, T, 2) x and y of the tokens, in units of the image.
        boxes_cxcywh_norm: (B, N, 4) in the same units.

    Returns:
        (B, N, T) float32.
    """
    center, size = at_least_float32(boxes_cxcywh_norm).split(2, dim=-1)  # (B, N, 2) each
    half = (size / 2).clamp(min=MIN_HALF_SIDE)
    # One axis at a time, and in place: (B, N, T, 2) would be the largest tensor of the decoder.
    x, y = (
        (centers[:, None, :, axis] - center[..., axis, None]).div_(half[..., axis, None]).square_() for axis in (0, 1)
    )
    return x.add_(y).neg_().add_(1).clamp_(min=-BOX_PRIOR_FLOOR)


class MaskAttention(nn.Module):
    """Dense multi-head cross-attention.

    Args:
        dim: D.
        num_heads: h, divides dim.
        mask_only: only queries and keys are projected, for the tail, which refines no queries.
        box_prior: the memory's box prior is added to the logits of all heads, times a learned weight.
    """

    def __init__(self, *, dim: int, num_heads: int, mask_only: bool = False, box_prior: bool = False):
        super().__init__()
        self.num_heads = num_heads
        self.query_proj, self.key_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        input_proj = [self.query_proj, self.key_proj]
        if not mask_only:
            self.value_proj, self.output_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
            input_proj += [self.value_proj, self.output_proj]
        for linear in input_proj:
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
        """Attended values (B, N, D), projected; `q` and `keys` from `queries_and_keys`."""
        values = self._split_heads(self.value_proj(memory.values))
        mask = None if memory.padding_mask is None else ~memory.padding_mask[:, None, None, :]
        if memory.box_prior is not None:
            bias = (self.prior_weight * memory.box_prior).to(q.dtype)[:, None]  # (B, 1, N, T), of all heads
            mask = bias if mask is None else bias.masked_fill(~mask, -torch.inf)
        attended = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=1.0)
        return self.output_proj(attended.transpose(1, 2).flatten(2))  # (B, heads, N, D/heads) -> (B, N, D)


class MaskHead(nn.Module):
    """A_3, A_4, A_5 -> one mask: mixes the heads of each level, and fuses all levels at the size of the finest.

    With 8 heads and 3 levels it has 241 parameters, the paper's "200 parameters".

    Args:
        num_levels: L.
        num_heads: h.
        activation: "sigmoid" or "relu".
        relu_gradient: "plain" or "revive", see `revivable_relu`; "sigmoid" ignores it.
        box_prior: the memory's box prior at the finest level is added to the fused map, times a learned weight.
        dim: D, if masks are refined with the memory's mask features; None: they are not.
    """

    def __init__(
        self,
        *,
        num_levels: int,
        num_heads: int,
        activation: str,
        relu_gradient: str = "plain",
        box_prior: bool = False,
        dim: int | None = None,
    ):
        super().__init__()
        self.activation = mask_activation(activation, relu_gradient)
        self.activation_checkpointing = True
        level_mix = [nn.Linear(num_heads, num_heads) for _ in range(num_levels)]
        self.level_mix = nn.ModuleList(level_mix)
        self.fuse = nn.Linear(num_levels * num_heads, 1)
        for linear in (*level_mix, self.fuse):
            nn.init.xavier_uniform_(linear.weight)
        if box_prior:
            self.prior_weight = nn.Parameter(torch.ones(()))
        self.mask_embed: nn.Linear | None = None
        if dim is not None:
            self.mask_embed = nn.Linear(dim, MASK_FEATURE_DIM)
            nn.init.zeros_(self.mask_embed.weight)
            nn.init.zeros_(self.mask_embed.bias)

    def forward(self, q: Tensor, keys: Tensor, memory: AttentionMemory) -> Tensor:
        """Mask scores (B, N, h, w) from the attention logits of `q` (B, heads, N, d) and `keys` (B, heads, T, d).

        With many queries the attention maps, N x T x h numbers, are larger than the keys: they are not stored, and
        backward computes them again (once, together with the block, if the whole block is checkpointed).
        """
        num_queries, head_dim = q.shape[2:]
        is_worth_it = self.activation_checkpointing and num_queries > head_dim
        if is_worth_it and torch.is_grad_enabled() and not is_traced():
            return checkpoint(self._fuse, q, keys, memory, use_reentrant=False, preserve_rng_state=False)
        return self._fuse(q, keys, memory)

    def _fuse(self, q: Tensor, keys: Tensor, memory: AttentionMemory) -> Tensor:
        """As `forward`.

        Fusing is linear and upsampling treats each map separately. So each level is fused to one map, which is then
        upsampled: the result equals that of upsampling h maps and then fusing, at a fraction of the cost.
        """
        shapes = memory.spatial_shapes
        sizes = [h * w for h, w in shapes]
        level_keys = keys.split(sizes, dim=2)
        level_padding = [None] * len(sizes) if memory.padding_mask is None else memory.padding_mask.split(sizes, dim=1)
        batch = len(keys)
        fuse_weights = self.fuse.weight.view(len(sizes), 1, -1)
        fused: Tensor = self.fuse.bias
        for level, (mix, (h, w)) in enumerate(zip(self.level_mix, shapes, strict=True)):
            assert isinstance(mix, nn.Linear)
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
        if self.mask_embed is not None and memory.mask_features is not None:
            return self._refine(fused, q, memory.mask_features, is_padded=memory.padding_mask is not None)
        scores = self.activation(fused)
        if level_padding[0] is not None:
            scores = scores.masked_fill(level_padding[0].view(-1, 1, *shapes[0]), 0.0)
        return scores

    def _refine(self, fused: Tensor, q: Tensor, features: MaskFeatures, *, is_padded: bool) -> Tensor:
        """Mask scores at the size of the mask features: the upsampled fused map plus the product of query and features.

        The product is 0 at the start of training.
        """
        assert self.mask_embed is not None
        fused = F.interpolate(fused, size=features.values.shape[2:], mode="bilinear", align_corners=False)
        queries = q.transpose(1, 2).flatten(2) * q.shape[-1] ** 0.5  # (B, heads, N, d) -> (B, N, D), without the scale
        product = self.mask_embed(queries) @ features.values.flatten(2)  # (B, N, h*w)
        fused = fused + product.unflatten(-1, features.values.shape[2:])
        scores = self.activation(fused)
        if is_padded and features.padding_mask is not None:
            scores = scores.masked_fill(features.padding_mask[:, None], 0.0)
        return scores


def mask_activation(name: str, relu_gradient: str) -> Callable[[Tensor], Tensor]:
    """The function from a fused map (B, N, h, w) to mask scores of the same shape.

    Args:
        name: "sigmoid": scores in [0, 1]; "relu": scores >= 0 (released recipe).
        relu_gradient: gradient of "relu": "plain", the derivative, or "revive", see `revivable_relu`; "sigmoid" ignores
            it.

    Raises:
        UserError: if either name is unknown.
    """
    if name not in ACTIVATIONS:
        raise UserError(f'MODEL.PSF.MASK_DECODER.MASK_ACTIVATION is "{name}": expected one of {list(ACTIVATIONS)}')
    if relu_gradient not in RELU_GRADIENTS:
        raise UserError(
            f'MODEL.PSF.MASK_DECODER.RELU_GRADIENT is "{relu_gradient}": expected one of {list(RELU_GRADIENTS)}'
        )
    if name == "sigmoid":
        return torch.sigmoid
    return revivable_relu if relu_gradient == "revive" else F.relu


def revivable_relu(fused: Tensor) -> Tensor:
    """ReLU; backward also passes a small gradient at scores of 0 if the gradient would raise them.

    The gradient of `fused` is that of the scores where they are above 0, elsewhere its negative part times
    `REVIVE_SLOPE`. In an empty mask the dice loss has the gradient -2 t / sum(t^2), where t is the ground truth: it
    would raise the scores inside a segment, but the derivative of ReLU drops it.

    Without gradients, and in traced or exported graphs, this is `F.relu`.

    Args:
        fused: of any floating type and shape.

    Returns:
        max(fused, 0).
    """
    if is_traced() or not torch.is_grad_enabled():
        return F.relu(fused)
    scores: Tensor = _RevivableReLU.apply(fused)
    return scores


class _RevivableReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fused: Tensor) -> Tensor:
        scores = F.relu(fused)
        ctx.save_for_backward(scores)
        return scores

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (scores,) = ctx.saved_tensors
        return torch.where(scores > 0, gradient, REVIVE_SLOPE * gradient.clamp(max=0.0))
