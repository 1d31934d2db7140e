"""The replaceable parts of the network: what each one receives and returns, and the registry that finds it by name.

A part is an nn.Module. Decorate its class with `@..._REGISTRY.register()`, name it in the config (MODEL.PSF.*.NAME),
and import its module with `psf train --import my_package.my_module`. `psf.testing` checks a part against this module;
docs/your-own-decoder.md is a complete example. The post-processor is the fourth replaceable part: a subclass of
`psf.inference.PostProcessor`.

Rules for all parts:

* The registry calls the class with the config: `MyDecoder(cfg, ...)`. With Detectron2's `@configurable`, `from_config`
  receives these arguments and returns the keyword arguments of `__init__`.
* B images are padded at the right and at the bottom to one size. `padding_mask` is True where padded, and None if no
  image is padded. Values in padding never change the output for an image's own pixels, and the images of a batch do
  not influence each other. (Exception: with MODEL.PSF.MASK_DECODER.IGNORE_PADDING False, the mask decoder attends to
  padded tokens.)
* All tensors have the dtype and device of the part's input; under autocast, scores and logits may be float16 or
  bfloat16. Box coordinates are float32 at least.
* Every parameter receives a gradient in each training step: DistributedDataParallel requires it.
* MODEL.PSF.ACTIVATION_CHECKPOINTING works on a part with an attribute `layers`, a list of modules: it stores only the
  inputs of each layer and runs the layer again in backward. So the result of a layer must depend only on its arguments,
  its parameters and torch's random numbers, and its arguments are tensors or tuples of tensors. If a module in a layer
  checkpoints itself, its attribute `activation_checkpointing` is set to False.
* At test, torch.compile makes one graph of the model's `candidates` if no part branches on the values of tensors.

Letters in shapes: B batch, N queries, T tokens, D channels (MODEL.PSF.HIDDEN_DIM), L levels, K classes, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import Tensor

from psf.structures import DecodedMasks, FeatureTokens, LocatedQueries

__all__ = [
    "LOCATION_DECODER_REGISTRY",
    "MASK_DECODER_REGISTRY",
    "PIXEL_ENCODER_REGISTRY",
    "LocationDecoderProtocol",
    "MaskDecoderDepth",
    "MaskDecoderProtocol",
    "PixelEncoderProtocol",
    "build_location_decoder",
    "build_mask_decoder",
    "build_pixel_encoder",
]

PIXEL_ENCODER_REGISTRY = Registry("PSF_PIXEL_ENCODER")
PIXEL_ENCODER_REGISTRY.__doc__ = "Classes called as (cfg); see PixelEncoderProtocol."

LOCATION_DECODER_REGISTRY = Registry("PSF_LOCATION_DECODER")
LOCATION_DECODER_REGISTRY.__doc__ = "Classes called as (cfg, num_classes); see LocationDecoderProtocol."

MASK_DECODER_REGISTRY = Registry("PSF_MASK_DECODER")
MASK_DECODER_REGISTRY.__doc__ = "Classes called as (cfg, depth), depth a MaskDecoderDepth; see MaskDecoderProtocol."


class PixelEncoderProtocol(Protocol):
    """Feature maps of all levels -> tokens (section 3.2). Built as (cfg); MODEL.PSF.PIXEL_ENCODER.NAME."""

    def __call__(self, levels: Sequence[Tensor], padding_mask: Tensor | None, /) -> FeatureTokens:
        """Encode a batch.

        Args:
            levels: L = MODEL.PSF.NUM_FEATURE_LEVELS maps (B, D, h, w), projected to D channels, finest first.
            padding_mask: (B, H, W) bool of the image batch, True where padded; None if no image is padded.

        Returns:
            FeatureTokens with
            tokens (B, T, D), T = sum of h * w, each level flattened row by row, in the order of `levels`;
            pos_embed (B, T, D), the position encoding of each token (added to keys with MASK_DECODER.KEY_POSITION);
            spatial_shapes, the (h, w) of `levels`;
            padding_mask (B, T), None if and only if the argument is None;
            valid_ratios (B, L, 2) float32 at least, the share of each level's width and height that is not padding.
        """


class LocationDecoderProtocol(Protocol):
    """Tokens -> location-aware thing queries (section 3.3.2). Built as (cfg, num_classes); LOCATION_DECODER.NAME.

    `num_classes` is K, the number of thing classes (of all classes with MODEL.PSF.QUERIES "joint"). The attribute
    `training` decides for which layers the auxiliary head runs.
    """

    def __call__(self, features: FeatureTokens, /) -> LocatedQueries:
        """Decode a batch.

        Args:
            features: of all L levels.

        Returns:
            LocatedQueries with
            queries (B, N, D), N = MODEL.PSF.NUM_THING_QUERIES or less;
            layers, predictions of the auxiliary head: in training one for each decoder layer; at test only the last, or
            none if no key needs it (THING_CLASSIFIER "location_decoder" and TEST.INSTANCE.BOXES "location_decoder"
            do). Each has class_logits (B, N, K) and locations, by LOCATION_DECODER.TARGET (B, N, 4) boxes_cxcywh_norm
            or (B, N, 2) centers of mass; float32 at least, in [0, 1] of the image without padding;
            query_pos (B, N, D), positional part of the queries, if MASK_DECODER.THING_POSITION is "located"; else None;
            boxes_cxcywh_norm (B, N, 4) without gradient, if MASK_DECODER.BOX_PRIOR is True; else None;
            proposals, predictions for all T tokens, if the queries are chosen from them; else None.
        """


class MaskDecoderDepth(NamedTuple):
    """Arguments of a mask decoder in addition to the config; thing queries and stuff queries have one decoder each."""

    num_layers: int  # D_m
    self_attention: bool  # queries attend to one another
    has_boxes: bool = False  # the queries are thing queries, for which the location decoder can predict boxes


class MaskDecoderProtocol(Protocol):
    """Queries and tokens -> masks and refined queries (section 3.3.3). Built as (cfg, depth); MASK_DECODER.NAME."""

    def __call__(
        self,
        queries: Tensor,
        features: FeatureTokens,
        query_pos: Tensor | None = None,
        /,
        *,
        boxes: Tensor | None = None,
        layer: int | None = None,
    ) -> DecodedMasks:
        """Decode the queries.

        Args:
            queries: (B, N, D); N differs between calls and may be 1.
            features: tokens of the len(MODEL.PSF.IN_FEATURES) finest levels; with FINE_FEATURE one finer level before
                them.
            query_pos: (N, D) or (B, N, D), positional part of the queries; None: they have none.
            boxes: (B, N, 4) boxes_cxcywh_norm, with MASK_DECODER.BOX_PRIOR and `depth.has_boxes`; else None.
            layer: which of the depth.num_layers layers to return.
                None (training): all of them.
                k >= 1 (MODEL.PSF.TEST_LAYER): only layer min(k, num_layers). Later layers need not be computed.
                -1: only the last masks and the last queries.

        Returns:
            DecodedMasks. mask_scores: tensors (B, N, h, w) at the size of the first level of `features`, or of
            features.mask_features (MODEL.PSF.MASK_FEATURE) if it is not None; >= 0, and <= 1 except with
            MASK_ACTIVATION "relu"; 0 in padding. refined_queries: tensors (B, N, D); one linear layer per tensor
            predicts the classes. With `layer` None: num_layers refined queries, and num_layers masks or one more, made
            from the last refined queries (as in psf's decoder). With a number: one of each, equal to those of `layer`
            None.
        """


def build_pixel_encoder(cfg: CfgNode) -> PixelEncoderProtocol:
    """The encoder that MODEL.PSF.PIXEL_ENCODER.NAME names."""
    part: PixelEncoderProtocol = PIXEL_ENCODER_REGISTRY.get(cfg.MODEL.PSF.PIXEL_ENCODER.NAME)(cfg)
    return part


def build_location_decoder(cfg: CfgNode, num_classes: int) -> LocationDecoderProtocol:
    """The decoder that MODEL.PSF.LOCATION_DECODER.NAME names, for this number of thing classes."""
    part: LocationDecoderProtocol = LOCATION_DECODER_REGISTRY.get(cfg.MODEL.PSF.LOCATION_DECODER.NAME)(cfg, num_classes)
    return part


def build_mask_decoder(cfg: CfgNode, depth: MaskDecoderDepth) -> MaskDecoderProtocol:
    """The decoder that MODEL.PSF.MASK_DECODER.NAME names, for things or for stuff."""
    part: MaskDecoderProtocol = MASK_DECODER_REGISTRY.get(cfg.MODEL.PSF.MASK_DECODER.NAME)(cfg, depth)
    return part
