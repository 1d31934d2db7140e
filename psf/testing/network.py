"""The contracts of pixel encoder, location decoder and mask decoder (`psf.modeling.interfaces`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from psf.modeling import MaskDecoderDepth
from psf.modeling.neck import MASK_FEATURE_DIM
from psf.structures import DecodedMasks, FeatureTokens, LocatedQueries, MaskFeatures
from psf.testing.part import FINEST_STRIDE, PartCheck, level_shapes, small_config

__all__ = ["check_location_decoder", "check_mask_decoder", "check_pixel_encoder"]

NUM_THING_CLASSES = 3


def check_pixel_encoder(encoder: Callable[[CfgNode], Any], cfg: CfgNode | None = None) -> None:
    """Check a pixel encoder against `psf.modeling.interfaces.PixelEncoderProtocol`.

    Args:
        encoder: called as (cfg), for example a class in PIXEL_ENCODER_REGISTRY.
        cfg: has the keys that the encoder reads; None: `small_config()`.

    Raises:
        AssertionError: if the encoder violates a requirement; the message names the first.
    """
    cfg = cfg or small_config()
    PixelEncoderCheck(lambda: encoder(cfg), cfg).run()


def check_location_decoder(decoder: Callable[[CfgNode, int], Any], cfg: CfgNode | None = None) -> None:
    """Check a location decoder against `psf.modeling.interfaces.LocationDecoderProtocol`.

    Args:
        decoder: called as (cfg, num_classes), for example a class in LOCATION_DECODER_REGISTRY.
        cfg: has the keys that the decoder reads; None: `small_config()`.

    Raises:
        AssertionError: if the decoder violates a requirement; the message names the first.
    """
    cfg = cfg or small_config()
    LocationDecoderCheck(lambda: decoder(cfg, NUM_THING_CLASSES), cfg).run()


def check_mask_decoder(decoder: Callable[[CfgNode, MaskDecoderDepth], Any], cfg: CfgNode | None = None) -> None:
    """Check a mask decoder against `psf.modeling.interfaces.MaskDecoderProtocol`, for thing and stuff queries.

    Args:
        decoder: called as (cfg, depth), for example a class in MASK_DECODER_REGISTRY.
        cfg: has the keys that the decoder reads; None: `small_config()`.

    Raises:
        AssertionError: if the decoder violates a requirement; the message names the first.
    """
    cfg = cfg or small_config()
    node = cfg.MODEL.PSF.MASK_DECODER
    things = MaskDecoderDepth(node.NUM_THING_LAYERS, node.THING_SELF_ATTENTION, has_boxes=True)
    stuff = MaskDecoderDepth(node.NUM_STUFF_LAYERS, node.STUFF_SELF_ATTENTION)
    for depth in (things, stuff):
        MaskDecoderCheck(lambda depth=depth: decoder(cfg, depth), cfg, depth).run()  # type: ignore[misc]


class PixelEncoderCheck(PartCheck):
    attribute = checkpointing_name = "pixel_encoder"

    def __init__(self, build: Callable[[], Any], cfg: CfgNode):
        super().__init__(build, cfg)
        self.shapes = level_shapes(self.node.NUM_FEATURE_LEVELS)

    def call(self, part: nn.Module, images: Sequence[int], *, is_padded: bool = True, noise: int = 0) -> Any:
        return part(self.maps(images, self.shapes, noise), self.padding_mask(images) if is_padded else None)

    def check_output(self, output: Any, batch: int, *, is_padded: bool, is_training: bool = False) -> None:
        self.require(isinstance(output, FeatureTokens), f"it returns a {type(output).__name__}, not FeatureTokens")
        num_tokens = sum(h * w for h, w in self.shapes)
        for name in ("tokens", "pos_embed"):
            self.require_shape(name, getattr(output, name), (batch, num_tokens, self.node.HIDDEN_DIM))
        shapes = [tuple(shape) for shape in output.spatial_shapes]
        self.require(shapes == self.shapes, f"spatial_shapes are {shapes}; expected {self.shapes}")
        self.require_shape("valid_ratios", output.valid_ratios, (batch, len(self.shapes), 2))
        dtype = output.valid_ratios.dtype
        self.require(dtype in (torch.float32, torch.float64), f"valid_ratios are {dtype}; expected float32 at least")
        has_mask = output.padding_mask is not None
        expected = "is None; expected (B, T)" if is_padded else "is not None although no image is padded"
        self.require(has_mask == is_padded, f"padding_mask {expected}")
        if has_mask:
            self.require_shape("padding_mask", output.padding_mask, (batch, num_tokens))

    def tensors(self, output: Any, images: Sequence[int]) -> dict[str, Tensor]:
        padding = torch.cat([m.flatten(1) for m in self.level_masks(images, self.shapes)], dim=1)[..., None]
        return {
            "tokens": output.tokens.masked_fill(padding, 0.0),
            "pos_embed": output.pos_embed.masked_fill(padding, 0.0),
            "valid_ratios": output.valid_ratios,
        }


class LocationDecoderCheck(PartCheck):
    attribute = checkpointing_name = "location_decoder"

    def __init__(self, build: Callable[[], Any], cfg: CfgNode):
        super().__init__(build, cfg)
        self.shapes = level_shapes(self.node.NUM_FEATURE_LEVELS)
        self.location_dim = 2 if self.node.LOCATION_DECODER.TARGET == "mass_center" else 4

    def call(self, part: nn.Module, images: Sequence[int], *, is_padded: bool = True, noise: int = 0) -> Any:
        return part(self.features(images, self.shapes, is_padded, noise))

    def check_output(self, output: Any, batch: int, *, is_padded: bool, is_training: bool = False) -> None:
        self.require(isinstance(output, LocatedQueries), f"it returns a {type(output).__name__}, not LocatedQueries")
        node, dim = self.node, self.node.HIDDEN_DIM
        most = node.NUM_THING_QUERIES
        self.require(
            isinstance(output.queries, Tensor) and output.queries.dim() == 3 and output.queries.shape[1] <= most,
            f"queries are {tuple(getattr(output.queries, 'shape', ()))}; expected (B, N, D) with N <= {most} "
            "(MODEL.PSF.NUM_THING_QUERIES)",
        )
        num_queries = output.queries.shape[1]
        self.require_shape("queries", output.queries, (batch, num_queries, dim))
        is_head_used = "location_decoder" in (node.THING_CLASSIFIER, node.TEST.INSTANCE.BOXES)
        if node.LOCATION_DECODER.NUM_LAYERS > 0 and is_training:
            self.require(len(output.layers) > 0, "no predictions (`layers`) in training")
        elif is_head_used:
            self.require(len(output.layers) == 1, f"{len(output.layers)} predictions (`layers`) at test; expected 1")
        for layer in output.layers:
            self.require_shape("class_logits", layer.class_logits, (batch, num_queries, NUM_THING_CLASSES))
            self.check_locations("locations", layer.locations, (batch, num_queries, self.location_dim))
        if node.MASK_DECODER.THING_POSITION == "located":
            self.require_shape("query_pos", output.query_pos, (batch, num_queries, dim))
        if node.MASK_DECODER.BOX_PRIOR:
            self.check_locations("boxes_cxcywh_norm", output.boxes_cxcywh_norm, (batch, num_queries, 4))
            self.require(not output.boxes_cxcywh_norm.requires_grad, "boxes_cxcywh_norm have a gradient; detach them")

    def check_locations(self, name: str, value: Any, shape: Sequence[int]) -> None:
        self.require_shape(name, value, shape)
        self.require(
            value.dtype in (torch.float32, torch.float64), f"{name} are {value.dtype}; expected float32 at least"
        )
        self.require(bool(((value >= 0) & (value <= 1)).all()), f"{name} are not in [0, 1]")

    def tensors(self, output: Any, images: Sequence[int]) -> dict[str, Tensor]:
        tensors = {"queries": output.queries}
        for i, layer in enumerate(output.layers):
            tensors |= {f"class_logits {i}": layer.class_logits, f"locations {i}": layer.locations}
        return tensors


class MaskDecoderCheck(PartCheck):
    attribute, checkpointing_name = "thing_decoder", "mask_decoder"

    def __init__(self, build: Callable[[], Any], cfg: CfgNode, depth: MaskDecoderDepth):
        super().__init__(build, cfg)
        self.depth = depth
        has_fine_level = bool(self.node.FINE_FEATURE)
        num_levels = len(self.node.IN_FEATURES) + has_fine_level
        stride = FINEST_STRIDE // (2 if has_fine_level else 1)
        self.shapes = level_shapes(num_levels, stride)
        self.mask_shape = level_shapes(1, stride // 2)[0] if self.node.MASK_FEATURE else self.shapes[0]

    def call(
        self,
        part: nn.Module,
        images: Sequence[int],
        *,
        is_padded: bool = True,
        noise: int = 0,
        layer: int | None = None,
        num_queries: int = 5,
    ) -> Any:
        generator = torch.Generator().manual_seed(3)
        queries, query_pos = torch.randn(2, 2, num_queries, self.node.HIDDEN_DIM, generator=generator)
        centers, sizes = torch.rand(2, 2, num_queries, 2, generator=generator)
        boxes = torch.cat((centers, 0.1 + 0.4 * sizes), dim=-1)[list(images)]
        node, features = self.node.MASK_DECODER, self.features(images, self.shapes, is_padded, noise)
        if self.node.MASK_FEATURE:
            [values] = self.maps(images, [self.mask_shape], noise, seed=5)
            [padding] = self.level_masks(images, [self.mask_shape])
            mask_features = MaskFeatures(values[:, :MASK_FEATURE_DIM], padding if is_padded else None)
            features = features._replace(mask_features=mask_features)
        if self.depth.has_boxes:  # thing queries
            positions = query_pos[list(images)] if node.THING_POSITION == "located" else None
            prior = boxes if node.BOX_PRIOR else None
            return part(queries[list(images)], features, positions, boxes=prior, layer=layer)
        return part(queries[:1].expand(len(images), -1, -1), features, query_pos[0], boxes=None, layer=layer)

    def check_output(self, output: Any, batch: int, *, is_padded: bool, is_training: bool = False) -> None:
        self.check_decoded(output, batch, num_queries=5)

    def check_decoded(self, output: Any, batch: int, *, num_queries: int) -> None:
        self.require(isinstance(output, DecodedMasks), f"it returns a {type(output).__name__}, not DecodedMasks")
        depth, masks = self.depth.num_layers, output.mask_scores
        self.require(
            len(output.refined_queries) == depth,
            f"{len(output.refined_queries)} refined queries with `layer` None; expected one per layer, {depth}",
        )
        self.require(
            len(masks) in (depth, depth + 1),
            f"{len(masks)} masks with `layer` None; expected one per layer, {depth}, or one more",
        )
        for queries in output.refined_queries:
            self.require_shape("refined_queries", queries, (batch, num_queries, self.node.HIDDEN_DIM))
        for scores in masks:
            self.require_shape("mask_scores", scores, (batch, num_queries, *self.mask_shape))
            self.require(bool((scores >= 0).all()), "mask_scores are negative; apply a sigmoid or a ReLU")
            if self.node.MASK_DECODER.MASK_ACTIVATION != "relu":
                self.require(bool((scores <= 1).all()), "mask_scores exceed 1; apply a sigmoid")

    def check_shapes(self, part: nn.Module) -> None:
        super().check_shapes(part)
        self.check_decoded(self.call(part, [0, 1], num_queries=1), 2, num_queries=1)

    def check_padding(self, part: nn.Module) -> None:
        if not self.node.MASK_DECODER.IGNORE_PADDING:
            return
        super().check_padding(part)
        [padding] = self.level_masks([0, 1], [self.mask_shape])
        for scores in self.call(part, [0, 1]).mask_scores:
            in_padding = scores.masked_select(padding[:, None])
            self.require(bool((in_padding == 0).all()), "mask_scores are not 0 in padding")

    def run(self) -> None:
        super().run()
        with torch.no_grad():
            self.check_layers(self.make(seed=0))

    def check_layers(self, part: nn.Module) -> None:
        """`layer` k returns the masks and queries of layer min(k, num_layers); -1 the last."""
        everything, depth = self.call(part, [0, 1]), self.depth.num_layers
        for layer in (*range(1, depth + 2), -1):
            output = self.call(part, [0, 1], layer=layer)
            self.require(
                len(output.mask_scores) == len(output.refined_queries) == 1,
                f"`layer` {layer} returns {len(output.mask_scores)} masks and {len(output.refined_queries)} refined "
                "queries; expected one of each",
            )
            index = -1 if layer == -1 else min(layer, depth) - 1
            expected = DecodedMasks([everything.mask_scores[index]], [everything.refined_queries[index]])
            message = f"the result with `layer` {layer} differs from that of the same layer with `layer` None"
            self.require_equal(self.tensors(output, [0, 1]), self.tensors(expected, [0, 1]), message)

    def tensors(self, output: Any, images: Sequence[int]) -> dict[str, Tensor]:
        padding = self.level_masks(images, [self.mask_shape])[0][:, None]
        masks = {f"mask_scores {i}": x.masked_fill(padding, 0.0) for i, x in enumerate(output.mask_scores)}
        return masks | {f"refined_queries {i}": x for i, x in enumerate(output.refined_queries)}
