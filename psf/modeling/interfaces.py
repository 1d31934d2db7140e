"""The replaceable parts of the network: what each one receives and returns, and the registry that finds it by name.

Decorate the class of a part with `@..._REGISTRY.register()`, name it in the config (MODEL.PSF.*.NAME), and import its
module with `psf train --import my_package.my_module`. `psf.testing` checks a part against this module, and
docs/your-own-decoder.md is a complete example. The data types are in `psf.structures`. The post-processor is the fourth
replaceable part: its contract is the docstring of `psf.inference.PostProcessor`.

Rules for all parts:

* A part is an nn.Module that the registry builds from the config: `MyDecoder(cfg, ...)`. With Detectron2's
  `@configurable`, `from_config` receives these arguments and returns the keyword arguments of `__init__`. All
  parameters exist, with their shapes, when it is built (no nn.LazyLinear). It need not support pickle or deepcopy, but
  the state_dict holds its whole state, in tensors: a second instance that loads it gives the same results.
* The number of images B and the sizes of images and levels differ between calls. A level has half the size of the
  previous level, rounded up or down. B images are padded at the right and at the bottom to one size. `padding_mask` is
  a bool tensor, True where padded. It is None if no image is padded, which gives the same result as False everywhere.
* Values in padding never change the output for an image's own pixels, and the images of a batch do not influence each
  other, not even in training: no batch statistics (torch's BatchNorm; Detectron2's FrozenBatchNorm2d is fine).
  (Exception: with MODEL.PSF.MASK_DECODER.IGNORE_PADDING False, the mask decoder attends to padded tokens.)
* A part does not change its arguments in place: several parts read them.
* All tensors have the dtype and device of the part's input; under autocast, scores and logits may be float16 or
  bfloat16. Box coordinates and valid_ratios are float32 at least.
* In evaluation mode the same input gives the same result. Training mode adds nothing but random numbers (dropout), and
  the location decoder's predictions of all layers.
* In each training step every parameter that requires a gradient receives one: DistributedDataParallel requires it.
  Each output has a gradient, and gradients reach the part's input, so that the parts before it are trained; "reached by
  gradients" below says which tensors. Frozen parameters (requires_grad False) and integer ones are allowed.
* MODEL.PSF.ACTIVATION_CHECKPOINTING works on a part with an attribute `layers`, a list of modules: it stores only the
  inputs of each layer and runs the layer again in backward. So the result of a layer must depend only on its arguments,
  its parameters and torch's random numbers, and its arguments are tensors or tuples of tensors. If a module in a layer
  checkpoints itself, its attribute `activation_checkpointing` is set to False.
* At test, torch.compile makes one graph of the model's `candidates` if no part branches on the values of tensors.

Keys under MODEL.PSF that every part must support, because the rest of the model depends on them: the keys that the
protocols below name. All others, such as LOCATION_DECODER.TWO_STAGE and BOX_REFINEMENT, MASK_DECODER.KEY_POSITION and
STUFF_POSITION, NUM_POINTS, FEEDFORWARD_DIM or DROPOUT, are options of psf's own parts, which other parts may ignore.

Letters in shapes: B batch, N queries, T tokens, D channels (MODEL.PSF.HIDDEN_DIM), L levels, K classes, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from psf.structures import DecodedMasks, FeatureTokens, LocatedQueries

__all__ = [
    "LOCATION_DECODER_REGISTRY",
    "MASK_DECODER_REGISTRY",
    "PIXEL_ENCODER_REGISTRY",
    "LocationDecoderProtocol",
    "MaskDecoderDepth",
    "MaskDecoderProtocol",
    "Part",
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


class Part(Protocol):
    """What the model and its trainer use of a part besides `forward`; each nn.Module has it.

    The protocols below declare `forward`, which you write, so that mypy can compare it; nn.Module defines `__call__`.
    """

    training: bool

    def train(self, mode: bool = True) -> Any: ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...

    def state_dict(self) -> Any: ...


class PixelEncoderProtocol(Part, Protocol):
    """Feature maps of all levels -> tokens (section 3.2). Built as (cfg); MODEL.PSF.PIXEL_ENCODER.NAME."""

    def forward(self, levels: Sequence[Tensor], padding_mask: Tensor | None, /) -> FeatureTokens:
        """Encode a batch.

        Args:
            levels: L = MODEL.PSF.NUM_FEATURE_LEVELS maps (B, D, h, w), projected to D channels, finest first. Reached
                by gradients of `tokens`.
            padding_mask: (B, H, W) bool of the image batch, True where padded; None if no image is padded.

        Returns:
            FeatureTokens with
            tokens (B, T, D), T = sum of h * w, each level flattened row by row, in the order of `levels`;
            pos_embed (B, T, D), the position encoding of each token, for attention;
            spatial_shapes, the (h, w) of `levels`;
            padding_mask (B, T) bool, None if and only if the argument is None: the nearest value of the argument, that
            of row i * H // h and column j * W // w for row i and column j of a level;
            valid_ratios (B, L, 2), the share of each level's width, and of its height, that is not padding;
            mask_features None: the model adds them.
        """

    def __call__(self, levels: Sequence[Tensor], padding_mask: Tensor | None, /) -> FeatureTokens: ...


class LocationDecoderProtocol(Part, Protocol):
    """Tokens -> location-aware thing queries (section 3.3.2). Built as (cfg, num_classes); LOCATION_DECODER.NAME.

    `num_classes` is K, the number of thing classes (of all classes with MODEL.PSF.QUERIES "joint"). The attribute
    `training` decides for which layers the auxiliary head runs.
    """

    def forward(self, features: FeatureTokens, /) -> LocatedQueries:
        """Decode a batch.

        Args:
            features: of all L levels. `tokens` are reached by gradients of `queries`, unless
                LOCATION_DECODER.NUM_LAYERS is 0; `pos_embed` need not be.

        Returns:
            LocatedQueries with
            queries (B, N, D), N at least 1 and at most MODEL.PSF.NUM_THING_QUERIES;
            layers, predictions of the auxiliary head: in training one for each decoder layer, first to last (none if
            LOCATION_DECODER.NUM_LAYERS is 0); at test only the last, or none if no key needs it (THING_CLASSIFIER
            "location_decoder" and TEST.INSTANCE.BOXES "location_decoder" do). Each has class_logits (B, N, K) and
            locations, by LOCATION_DECODER.TARGET (B, N, 4) boxes_cxcywh_norm or (B, N, 2) centers of mass, in [0, 1] of
            the image without padding;
            query_pos (B, N, D), positional part of the queries, if MASK_DECODER.THING_POSITION is "located"; else None;
            boxes_cxcywh_norm (B, N, 4) without gradient, if MASK_DECODER.BOX_PRIOR is True; else None;
            proposals, predictions for all T tokens, if the queries are chosen from them: class_logits (B, T, K) and
            locations (B, T, 4) boxes_cxcywh_norm; else None.
        """

    def __call__(self, features: FeatureTokens, /) -> LocatedQueries: ...


class MaskDecoderDepth(NamedTuple):
    """Arguments of a mask decoder in addition to the config; thing queries and stuff queries have one decoder each."""

    num_layers: int  # D_m
    self_attention: bool  # queries attend to one another
    has_boxes: bool = False  # the queries are thing queries, for which the location decoder can predict boxes


class MaskDecoderProtocol(Part, Protocol):
    """Queries and tokens -> masks and refined queries (section 3.3.3). Built as (cfg, depth); MASK_DECODER.NAME."""

    def forward(
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
            queries: (B, N, D); N differs between calls and may be 1. Reached by gradients of masks and of refined
                queries. With MATCHER.MODE "per_layer" thing queries do not influence one another: some are filler.
            features: tokens of the len(MODEL.PSF.IN_FEATURES) finest levels; with FINE_FEATURE one finer level before
                them. With MODEL.PSF.MASK_FEATURE, `mask_features` with values (B, 32, h, w) (MASK_FEATURE_DIM) of a map
                that is finer still, and its padding_mask (B, h, w) or None; else None. Reached by gradients: `tokens`
                from refined queries; `mask_features.values` from masks, or `tokens` if there are none; `pos_embed` from
                either with FINE_FEATURE, whose level embedding is trained through it.
            query_pos: (N, D) or (B, N, D), positional part of the queries; None: they have none. That of stuff queries
                is learned: reached by gradients of masks or of refined queries.
            boxes: (B, N, 4) boxes_cxcywh_norm, with MASK_DECODER.BOX_PRIOR and `depth.has_boxes`; else None. A decoder
                may ignore them.
            layer: which of the depth.num_layers layers to return.
                None (training): all of them.
                k >= 1 (MODEL.PSF.TEST_LAYER): only layer min(k, num_layers). Later layers need not be computed.
                -1: only the last masks and the last queries.
                Never 0.

        Returns:
            DecodedMasks. mask_scores: tensors (B, N, h, w) at the size of features.mask_features.values, or of the
            first level of `features` if there are none; >= 0, and <= 1 except with MASK_DECODER.MASK_ACTIVATION "relu";
            0 in padding. refined_queries: tensors (B, N, D); one linear layer per tensor predicts the classes. With
            `layer` None, first layer to last: num_layers refined queries, and num_layers masks or one more, made from
            the last refined queries (as in psf's decoder). With a number: one of each, equal to those of `layer` None.
        """

    def __call__(
        self,
        queries: Tensor,
        features: FeatureTokens,
        query_pos: Tensor | None = None,
        /,
        *,
        boxes: Tensor | None = None,
        layer: int | None = None,
    ) -> DecodedMasks: ...


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
