"""The contracts of pixel encoder, location decoder and mask decoder (`psf.modeling.interfaces`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from psf.modeling import MaskDecoderDepth
from psf.structures import MASK_FEATURE_DIM, DecodedMasks, FeatureTokens, LocatedQueries, LocationLayer, MaskFeatures
from psf.testing.inputs import (
    FINEST_STRIDE,
    Call,
    configs_to_check,
    level_masks,
    level_shapes,
    make_features,
    make_maps,
)
from psf.testing.part import FLOAT32, PartCheck

__all__ = ["check_location_decoder", "check_mask_decoder", "check_pixel_encoder"]

NUM_THING_CLASSES = 3
Shapes = list[tuple[int, int]]


def check_pixel_encoder(encoder: Callable[[CfgNode], Any], cfg: CfgNode | None = None) -> None:
    """Check a pixel encoder against `psf.modeling.interfaces.PixelEncoderProtocol`.

    Args:
        encoder: called as (cfg), for example a class in PIXEL_ENCODER_REGISTRY.
        cfg: has the keys that the encoder reads; None: `small_config()`, then `small_config("small/psf_small.yaml")`.

    Raises:
        AssertionError: if the encoder violates a requirement; the message names the first, and the config.
    """
    for context, one in configs_to_check(cfg).items():
        PixelEncoderCheck(lambda one=one: encoder(one), one, _name(encoder), context).run()  # type: ignore[misc]


def check_location_decoder(decoder: Callable[[CfgNode, int], Any], cfg: CfgNode | None = None) -> None:
    """Check a location decoder against `psf.modeling.interfaces.LocationDecoderProtocol`.

    Args:
        decoder: called as (cfg, num_classes), for example a class in LOCATION_DECODER_REGISTRY.
        cfg: has the keys that the decoder reads; None: `small_config()`, then `small_config("small/psf_small.yaml")`.

    Raises:
        AssertionError: if the decoder violates a requirement; the message names the first, and the config.
    """
    for context, one in configs_to_check(cfg).items():
        build = lambda one=one: decoder(one, NUM_THING_CLASSES)  # noqa: E731
        LocationDecoderCheck(build, one, _name(decoder), context).run()


def check_mask_decoder(decoder: Callable[[CfgNode, MaskDecoderDepth], Any], cfg: CfgNode | None = None) -> None:
    """Check a mask decoder against `psf.modeling.interfaces.MaskDecoderProtocol`, for thing and stuff queries.

    Args:
        decoder: called as (cfg, depth), for example a class in MASK_DECODER_REGISTRY.
        cfg: has the keys that the decoder reads; None: `small_config()`, then `small_config("small/psf_small.yaml")`.

    Raises:
        AssertionError: if the decoder violates a requirement; the message names the first, and the config.
    """
    for context, one in configs_to_check(cfg).items():
        node = one.MODEL.PSF.MASK_DECODER
        depths = {
            "thing": MaskDecoderDepth(node.NUM_THING_LAYERS, node.THING_SELF_ATTENTION, has_boxes=True),
            "stuff": MaskDecoderDepth(node.NUM_STUFF_LAYERS, node.STUFF_SELF_ATTENTION),
        }
        for kind, depth in depths.items():
            build = lambda one=one, depth=depth: decoder(one, depth)  # noqa: E731
            MaskDecoderCheck(build, one, _name(decoder), f"{context}, for {kind} queries", depth).run()


def _name(part: Any) -> str:
    return getattr(part, "__name__", "the part")


class PixelEncoderCheck(PartCheck):
    attribute = checkpointing_name = "pixel_encoder"

    def shapes(self, call: Call) -> Shapes:
        """(h, w) of each level."""
        return level_shapes(self.node.NUM_FEATURE_LEVELS, call.size)

    def inputs(self, call: Call) -> dict[str, Tensor]:
        maps = make_maps(call, self.shapes(call), self.node.HIDDEN_DIM)
        mask = {"padding_mask": call.padding_mask()} if call.has_mask else {}
        return {f"levels[{i}]": x for i, x in enumerate(maps)} | mask

    def forward(self, part: nn.Module, inputs: dict[str, Tensor], call: Call) -> Any:
        levels = [inputs[f"levels[{i}]"] for i in range(self.node.NUM_FEATURE_LEVELS)]
        return part(levels, inputs.get("padding_mask"))

    def check_output(self, output: Any, call: Call, *, is_training: bool = False) -> None:
        self.require(isinstance(output, FeatureTokens), f"it returns a {type(output).__name__}, not FeatureTokens")
        batch, expected = len(call.images), self.shapes(call)
        num_tokens = sum(h * w for h, w in expected)
        for name in ("tokens", "pos_embed"):
            shape = (batch, num_tokens, self.node.HIDDEN_DIM)
            self.require_tensor(name, getattr(output, name), shape, self.dtypes)
        shapes = [tuple(shape) for shape in output.spatial_shapes]
        self.require(shapes == expected, f"spatial_shapes are {shapes}; expected {expected}")
        self.require(output.mask_features is None, "mask_features are not None; the model adds them")
        masks = level_masks(call, expected)
        self.check_padding_mask(output.padding_mask, torch.cat([mask.flatten(1) for mask in masks], dim=1), call)
        self.check_ratios(output.valid_ratios, masks)

    def check_padding_mask(self, found: Any, expected: Tensor, call: Call) -> None:
        message = "is None; expected (B, T)" if call.has_mask else "is not None although no image is padded"
        self.require((found is not None) == call.has_mask, f"padding_mask {message}")
        if call.has_mask:
            self.require_tensor("padding_mask", found, expected.shape, [torch.bool])
            wrong = int((found != expected).sum())
            self.require(
                not wrong,
                f"padding_mask is wrong at {wrong} of {expected.numel()} tokens; expected True where the nearest pixel "
                "of the argument is True (padded)",
            )

    def check_ratios(self, ratios: Any, masks: list[Tensor]) -> None:
        """Up to one token: the shares may be those of the pixels."""
        self.require_tensor("valid_ratios", ratios, (len(masks[0]), len(masks), 2), FLOAT32)
        for level, mask in enumerate(masks):
            for axis, (name, line) in enumerate((("width", ~mask[:, 0, :]), ("height", ~mask[:, :, 0]))):
                share, found = line.float().mean(1), ratios[:, level, axis]
                self.require(
                    bool(((found - share).abs() <= 1.0 / line.shape[1] + 1e-3).all()),
                    f"valid_ratios[:, {level}, {axis}] is {found.tolist()}; expected the share of the level's {name} "
                    f"that is not padding, {share.tolist()}",
                )

    def tensors(self, output: Any, call: Call) -> dict[str, Tensor]:
        padding = torch.cat([m.flatten(1) for m in level_masks(call, self.shapes(call))], dim=1)[..., None]
        return {
            "tokens": output.tokens.masked_fill(padding, 0.0),
            "pos_embed": output.pos_embed.masked_fill(padding, 0.0),
            "valid_ratios": output.valid_ratios,
        }

    def gradient_paths(self, output: Any) -> list[tuple[str, list[Tensor], list[str]]]:
        return [("tokens", [output.tokens], [f"levels[{i}]" for i in range(self.node.NUM_FEATURE_LEVELS)])]


class LocationDecoderCheck(PartCheck):
    attribute = checkpointing_name = "location_decoder"

    def shapes(self, call: Call) -> Shapes:
        """(h, w) of each level."""
        return level_shapes(self.node.NUM_FEATURE_LEVELS, call.size)

    def inputs(self, call: Call) -> dict[str, Tensor]:
        return feature_tensors(make_features(call, self.shapes(call), self.node.HIDDEN_DIM))

    def forward(self, part: nn.Module, inputs: dict[str, Tensor], call: Call) -> Any:
        return part(features_of(inputs, self.shapes(call)))

    def check_output(self, output: Any, call: Call, *, is_training: bool = False) -> None:
        self.require(isinstance(output, LocatedQueries), f"it returns a {type(output).__name__}, not LocatedQueries")
        batch, dim, most = len(call.images), self.node.HIDDEN_DIM, self.node.NUM_THING_QUERIES
        shape = tuple(getattr(output.queries, "shape", ()))
        self.require(
            len(shape) == 3 and 1 <= shape[1] <= most,
            f"queries are {shape}; expected (B, N, D) with 1 <= N <= {most} (MODEL.PSF.NUM_THING_QUERIES)",
        )
        num_queries = shape[1]
        self.require_tensor("queries", output.queries, (batch, num_queries, dim), self.dtypes)
        self.check_layers(output.layers, (batch, num_queries), is_training=is_training)
        node = self.node.MASK_DECODER
        self.require_only_if(output, "query_pos", node.THING_POSITION == "located", 'THING_POSITION "located"')
        if output.query_pos is not None:
            self.require_tensor("query_pos", output.query_pos, (batch, num_queries, dim), self.dtypes)
        self.require_only_if(output, "boxes_cxcywh_norm", node.BOX_PRIOR, "BOX_PRIOR True")
        if output.boxes_cxcywh_norm is not None:
            self.check_locations("boxes_cxcywh_norm", output.boxes_cxcywh_norm, (batch, num_queries, 4))
            self.require(not output.boxes_cxcywh_norm.requires_grad, "boxes_cxcywh_norm have a gradient; detach them")
        if output.proposals is not None:
            num_tokens = sum(h * w for h, w in self.shapes(call))
            self.check_layer("proposals", output.proposals, (batch, num_tokens), 4)

    def require_only_if(self, output: Any, name: str, is_wanted: bool, key: str) -> None:
        """The field is a tensor with this value of a key of MASK_DECODER, and else None."""
        has_one = getattr(output, name) is not None
        state = "is not None" if has_one else "is None"
        self.require(has_one == is_wanted, f"{name} {state}; expected a tensor with MASK_DECODER.{key}, and else None")

    def check_layers(self, layers: Any, shape: tuple[int, int], *, is_training: bool) -> None:
        is_head_used = "location_decoder" in (self.node.THING_CLASSIFIER, self.node.TEST.INSTANCE.BOXES)
        if not is_training:
            expected = "1" if is_head_used else "the last or none"
            self.require(
                int(is_head_used) <= len(layers) <= 1,
                f"{len(layers)} predictions (`layers`) at test; expected {expected}",
            )
        elif self.node.LOCATION_DECODER.NUM_LAYERS > 0:
            self.require(len(layers) > 0, "no predictions (`layers`) in training")
        for i, layer in enumerate(layers):
            self.check_layer(f"layers[{i}]", layer, shape, 2 if self._has_centers else 4)

    @property
    def _has_centers(self) -> bool:
        return self.node.LOCATION_DECODER.TARGET == "mass_center"

    def check_layer(self, name: str, layer: Any, shape: tuple[int, int], location_dim: int) -> None:
        self.require(isinstance(layer, LocationLayer), f"{name} is a {type(layer).__name__}; expected a LocationLayer")
        self.require_tensor(f"{name}.class_logits", layer.class_logits, (*shape, NUM_THING_CLASSES), self.dtypes)
        self.check_locations(f"{name}.locations", layer.locations, (*shape, location_dim))

    def check_locations(self, name: str, value: Any, shape: tuple[int, ...]) -> None:
        self.require_tensor(name, value, shape, FLOAT32)
        self.require(bool(((value >= 0) & (value <= 1)).all()), f"{name} are not in [0, 1]")

    def tensors(self, output: Any, call: Call) -> dict[str, Tensor]:
        tensors = {"queries": output.queries}
        for name in ("query_pos", "boxes_cxcywh_norm"):
            if getattr(output, name) is not None:
                tensors[name] = getattr(output, name)
        for i, layer in enumerate(output.layers, start=-len(output.layers)):  # test has only the last
            tensors |= {f"layers[{i}].class_logits": layer.class_logits, f"layers[{i}].locations": layer.locations}
        if output.proposals is not None:
            padding = torch.cat([m.flatten(1) for m in level_masks(call, self.shapes(call))], dim=1)[..., None]
            tensors |= {f"proposals.{k}": x.masked_fill(padding, 0.0) for k, x in output.proposals._asdict().items()}
        return tensors

    def gradient_paths(self, output: Any) -> list[tuple[str, list[Tensor], list[str]]]:
        reached = ["tokens"] if self.node.LOCATION_DECODER.NUM_LAYERS > 0 else []
        paths = [("queries", [output.queries], reached)]
        for i, layer in enumerate(output.layers):
            paths.append((f"layers[{i}]", list(layer), []))
        return paths if output.proposals is None else [*paths, ("proposals", list(output.proposals), ["tokens"])]


class MaskDecoderCheck(PartCheck):
    attribute, checkpointing_name = "thing_decoder", "mask_decoder"

    def __init__(self, build: Callable[[], Any], cfg: CfgNode, name: str, context: str, depth: MaskDecoderDepth):
        super().__init__(build, cfg, name, context)
        self.depth = depth
        self.has_fine_level, self.has_mask_features = bool(self.node.FINE_FEATURE), bool(self.node.MASK_FEATURE)
        self.stride = FINEST_STRIDE // (2 if self.has_fine_level else 1)

    def shapes(self, call: Call) -> Shapes:
        """(h, w) of each level."""
        return level_shapes(len(self.node.IN_FEATURES) + self.has_fine_level, call.size, self.stride)

    def mask_shape(self, call: Call) -> tuple[int, int]:
        """(h, w) of the masks."""
        return level_shapes(1, call.size, self.stride // 2 if self.has_mask_features else self.stride)[0]

    def inputs(self, call: Call) -> dict[str, Tensor]:
        generator, node, images = torch.Generator().manual_seed(3), self.node.MASK_DECODER, list(call.images)
        queries, query_pos = torch.randn(2, 3, 5, self.node.HIDDEN_DIM, generator=generator)[:, :, : call.num_queries]
        centers, sizes = torch.rand(2, 3, 5, 2, generator=generator)[:, :, : call.num_queries]
        tensors = feature_tensors(make_features(call, self.shapes(call), self.node.HIDDEN_DIM))
        if self.has_mask_features:
            shapes = [self.mask_shape(call)]
            [tensors["mask_features.values"]] = make_maps(call, shapes, MASK_FEATURE_DIM, seed=5)
            if call.has_mask:
                [tensors["mask_features.padding_mask"]] = level_masks(call, shapes)
        if not self.depth.has_boxes:  # stuff queries are the same for all images
            repeated = query_pos[:1].expand(len(images), -1, -1)
            tensors |= {
                "queries": queries[:1].expand(len(images), -1, -1).clone(),
                "query_pos": repeated if call.repeats_query_pos else query_pos[0],
            }
            return tensors
        tensors["queries"] = queries[images]
        if node.THING_POSITION == "located":
            tensors["query_pos"] = query_pos[images]
        if node.BOX_PRIOR:
            tensors["boxes"] = torch.cat((centers, 0.1 + 0.4 * sizes), dim=-1)[images]
        return tensors

    def forward(self, part: nn.Module, inputs: dict[str, Tensor], call: Call) -> Any:
        features = features_of(inputs, self.shapes(call))
        if self.has_mask_features:
            mask_features = MaskFeatures(inputs["mask_features.values"], inputs.get("mask_features.padding_mask"))
            features = features._replace(mask_features=mask_features)
        return part(inputs["queries"], features, inputs.get("query_pos"), boxes=inputs.get("boxes"), layer=call.layer)

    def check_output(self, output: Any, call: Call, *, is_training: bool = False) -> None:
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
        shape = (len(call.images), call.num_queries)
        for queries in output.refined_queries:
            self.require_tensor("refined_queries", queries, (*shape, self.node.HIDDEN_DIM), self.dtypes)
        for scores in masks:
            self.require_tensor("mask_scores", scores, (*shape, *self.mask_shape(call)), self.dtypes)
            self.require(bool((scores >= 0).all()), "mask_scores are negative; apply a sigmoid or a ReLU")
            if self.node.MASK_DECODER.MASK_ACTIVATION != "relu":
                self.require(bool((scores <= 1).all()), "mask_scores exceed 1; apply a sigmoid")

    def check_shapes(self, part: nn.Module) -> None:
        super().check_shapes(part)
        one = Call(num_queries=1)
        self.check_output(self.call(part, one), one)

    def check_padding(self, part: nn.Module) -> None:
        if not self.node.MASK_DECODER.IGNORE_PADDING:
            return
        super().check_padding(part)
        [padding] = level_masks(Call(), [self.mask_shape(Call())])
        for scores in self.call(part, Call()).mask_scores:
            in_padding = scores.masked_select(padding[:, None])
            self.require(bool((in_padding == 0).all()), "mask_scores are not 0 in padding")

    def run(self) -> None:
        super().run()
        with torch.no_grad():
            part = self.make(seed=0)
            self.check_layers(part)
            self.check_queries(part)

    def check_layers(self, part: nn.Module) -> None:
        """`layer` k returns the masks and queries of layer min(k, num_layers); -1 the last."""
        everything, depth = self.call(part, Call()), self.depth.num_layers
        for layer in (*range(1, depth + 2), -1):
            output = self.call(part, Call(layer=layer))
            self.require(
                len(output.mask_scores) == len(output.refined_queries) == 1,
                f"`layer` {layer} returns {len(output.mask_scores)} masks and {len(output.refined_queries)} refined "
                "queries; expected one of each",
            )
            index = -1 if layer == -1 else min(layer, depth) - 1
            expected = DecodedMasks([everything.mask_scores[index]], [everything.refined_queries[index]])
            message = f"the result with `layer` {layer} differs from that of the same layer with `layer` None"
            self.require_equal(self.tensors(output, Call()), self.tensors(expected, Call()), message)

    def check_queries(self, part: nn.Module) -> None:
        """Positions of stuff queries may be repeated; with MATCHER.MODE "per_layer" things do not influence others."""
        expected = self.results(part, Call())
        if not self.depth.has_boxes:
            repeated = self.results(part, Call(repeats_query_pos=True))
            message = "the result for query_pos (B, N, D) differs from that for (N, D) with the same values"
            self.require_equal(repeated, expected, message)
        elif self.node.MATCHER.MODE == "per_layer":
            first = {name: x[:, :1] for name, x in expected.items()}
            message = 'thing queries influence one another, and with MATCHER.MODE "per_layer" some are filler'
            self.require_equal(self.results(part, Call(num_queries=1)), first, message)

    def tensors(self, output: Any, call: Call) -> dict[str, Tensor]:
        padding = level_masks(call, [self.mask_shape(call)])[0][:, None]
        masks = {f"mask_scores {i}": x.masked_fill(padding, 0.0) for i, x in enumerate(output.mask_scores)}
        return masks | {f"refined_queries {i}": x for i, x in enumerate(output.refined_queries)}

    def gradient_paths(self, output: Any) -> list[tuple[str, list[Tensor], list[str]]]:
        masks, refined = list(output.mask_scores), list(output.refined_queries)
        learned = ["pos_embed"] if self.has_fine_level else []
        learned += [] if self.depth.has_boxes else ["query_pos"]
        return [
            ("mask_scores", masks, ["queries", "mask_features.values" if self.has_mask_features else "tokens"]),
            ("refined_queries", refined, ["queries", "tokens"]),
            ("mask_scores and refined_queries", masks + refined, learned),
        ]


def feature_tensors(features: FeatureTokens) -> dict[str, Tensor]:
    """The tensors of FeatureTokens by name."""
    return {name: x for name, x in features._asdict().items() if isinstance(x, Tensor)}


def features_of(tensors: dict[str, Tensor], shapes: Shapes) -> FeatureTokens:
    """FeatureTokens of these tensors and levels."""
    own = {name: x for name, x in tensors.items() if name in FeatureTokens._fields}
    return FeatureTokens(spatial_shapes=shapes, **{"padding_mask": None, **own})  # type: ignore[arg-type]
