"""psf's own parts meet their contracts, and parts that break a rule are told which one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from psf.modeling import DeformablePixelEncoder, LocationDecoder, MaskDecoder
from psf.modeling.mask_decoder import AttentionMemory
from psf.structures import DecodedMasks, LocatedQueries, LocationLayer
from psf.testing import check_location_decoder, check_mask_decoder, check_pixel_encoder, small_config
from tests.models import RECIPES


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    ("check", "part"),
    [
        (check_pixel_encoder, DeformablePixelEncoder),
        (check_location_decoder, LocationDecoder),
        (check_mask_decoder, MaskDecoder),
    ],
)
def test_own_parts(recipe: str, check: Any, part: Any) -> None:
    cfg = small_config()
    cfg.merge_from_list([x for key, value in RECIPES[recipe].items() for x in (f"MODEL.PSF.{key}", value)])
    check(part, cfg)


def test_mass_centers() -> None:
    cfg = small_config()
    cfg.MODEL.PSF.LOCATION_DECODER.TARGET = "mass_center"
    check_location_decoder(LocationDecoder, cfg)


class Changed(MaskDecoder):
    """A mask decoder whose masks are changed by `change`."""

    def forward(self, *args: Any, **kwargs: Any) -> DecodedMasks:
        masks, refined = super().forward(*args, **kwargs)
        return DecodedMasks([self.change(x) for x in masks], refined)

    def change(self, masks: Tensor) -> Tensor:
        raise NotImplementedError


class ReturnsTuple(MaskDecoder):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return tuple(super().forward(*args, **kwargs))


class DropsLayer(MaskDecoder):
    def forward(self, *args: Any, **kwargs: Any) -> DecodedMasks:
        masks, refined = super().forward(*args, **kwargs)
        return DecodedMasks(masks, refined[-1:])


class DropsMasks(MaskDecoder):
    def forward(self, *args: Any, **kwargs: Any) -> DecodedMasks:
        masks, refined = super().forward(*args, **kwargs)
        return DecodedMasks(masks[-1:], refined)


class HalfSize(Changed):
    def change(self, masks: Tensor) -> Tensor:
        return masks[..., ::2, ::2]


class OneQueryTooFew(MaskDecoder):
    def forward(self, queries: Tensor, *args: Any, **kwargs: Any) -> DecodedMasks:
        decoded = super().forward(queries, *args, **kwargs)
        return decoded._replace(refined_queries=[x[:, 1:] for x in decoded.refined_queries])


class Negative(Changed):
    def change(self, masks: Tensor) -> Tensor:
        return masks - 1


class AboveOne(Changed):
    def change(self, masks: Tensor) -> Tensor:
        return 2 * masks


class NotFinite(Changed):
    def change(self, masks: Tensor) -> Tensor:
        return masks / (masks - masks)


class Random(Changed):
    def change(self, masks: Tensor) -> Tensor:
        return masks * torch.rand(())


class AttendsToPadding(MaskDecoder):
    def _memory(self, features: Any, boxes: Any) -> AttentionMemory:
        return super()._memory(features, boxes)._replace(padding_mask=None)


class NotZeroInPadding(Changed):
    def change(self, masks: Tensor) -> Tensor:
        return masks.clamp(min=1e-3)


class MixesImages(Changed):
    def change(self, masks: Tensor) -> Tensor:
        return masks / (1 + masks.mean())


class IgnoresLayer(MaskDecoder):
    def forward(self, *args: Any, layer: int | None = None, **kwargs: Any) -> DecodedMasks:
        return super().forward(*args, **kwargs)


class AlwaysLast(MaskDecoder):
    def forward(self, *args: Any, layer: int | None = None, **kwargs: Any) -> DecodedMasks:
        return super().forward(*args, layer=None if layer is None else -1, **kwargs)


class UnusedParameter(MaskDecoder):
    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.unused = nn.Parameter(torch.ones(3))


class NaNGradient(MaskDecoder):
    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, *args: Any, **kwargs: Any) -> DecodedMasks:
        decoded = super().forward(*args, **kwargs)
        return decoded._replace(refined_queries=[x + (0 * self.scale).sqrt() for x in decoded.refined_queries])


class OnlyFloat32(MaskDecoder):
    def forward(self, queries: Tensor, *args: Any, **kwargs: Any) -> DecodedMasks:
        projected = self.tail.query_proj(queries)  # in half precision under autocast
        index = torch.zeros(len(queries), 1, queries.shape[2], dtype=torch.long)
        return super().forward(queries.scatter(1, index, projected[:, :1]), *args, **kwargs)


class HiddenState(Changed):
    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.factor = float(torch.rand(()))

    def change(self, masks: Tensor) -> Tensor:
        return masks * self.factor


class OtherNamesEachTime(MaskDecoder):
    count = 0

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        OtherNamesEachTime.count += 1
        self.register_buffer(f"buffer_{self.count}", torch.ones(()))


class CountsCalls(nn.Linear):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * (self.calls if self.training else 1)


class LayerWithState(MaskDecoder):
    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        for layer in self.layers:
            layer.feed_forward.fc1.__class__ = CountsCalls


MASK_DECODERS = {
    "tuple": (ReturnsTuple, "ReturnsTuple: it returns a tuple, not DecodedMasks"),
    "queries of one layer": (DropsLayer, "1 refined queries with `layer` None; expected one per layer, 2"),
    "masks of one layer": (DropsMasks, "1 masks with `layer` None; expected one per layer, 2, or one more"),
    "size": (HalfSize, r"mask_scores has shape \(1, 5, 4, 6\); expected \(1, 5, 8, 12\)"),
    "queries": (OneQueryTooFew, r"refined_queries has shape \(1, 4, 32\); expected \(1, 5, 32\)"),
    "negative": (Negative, "mask_scores are negative; apply a sigmoid or a ReLU"),
    "above 1": (AboveOne, "mask_scores exceed 1; apply a sigmoid"),
    "NaN": (NotFinite, "mask_scores has NaN or infinite values"),
    "random": (Random, "the result of a second call in evaluation mode differs: mask_scores 0 differs"),
    "padding": (AttendsToPadding, "values in padding change the result"),
    "not 0 in padding": (NotZeroInPadding, "mask_scores are not 0 in padding"),
    "batch": (MixesImages, "the result of image 0 in a batch differs from its result alone"),
    "all layers": (IgnoresLayer, "`layer` 1 returns 3 masks and 2 refined queries; expected one of each"),
    "another layer": (AlwaysLast, "the result with `layer` 1 differs from that of the same layer with `layer` None"),
    "unused": (UnusedParameter, "parameters without a gradient: unused; every output in training must depend"),
    "NaN gradient": (NaNGradient, "gradients with NaN or infinite values: scale"),
    "autocast": (OnlyFloat32, r"RuntimeError: scatter.*under autocast with torch\.bfloat16"),
    "hidden state": (HiddenState, "the result of a second instance with the same state_dict differs"),
    "names": (OtherNamesEachTime, "a second instance does not load its state_dict"),
    "state in a layer": (LayerWithState, "activation checkpointing of its `layers` changes gradients"),
}


@pytest.mark.parametrize(("decoder", "message"), MASK_DECODERS.values(), ids=MASK_DECODERS)
def test_broken_mask_decoder(decoder: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_mask_decoder(decoder)


def test_no_module() -> None:
    with pytest.raises(AssertionError, match=r"it is a function; expected an nn\.Module"):
        check_mask_decoder(lambda cfg, depth: test_no_module)


class SwappedShapes(DeformablePixelEncoder):
    def forward(self, *args: Any) -> Any:
        features = super().forward(*args)
        return features._replace(spatial_shapes=[(w, h) for h, w in features.spatial_shapes])


class HalfRatios(DeformablePixelEncoder):
    def forward(self, *args: Any) -> Any:
        features = super().forward(*args)
        return features._replace(valid_ratios=features.valid_ratios.half())


class NoPaddingMask(DeformablePixelEncoder):
    def forward(self, *args: Any) -> Any:
        return super().forward(*args)._replace(padding_mask=None)


class AlwaysPaddingMask(DeformablePixelEncoder):
    def forward(self, levels: Any, padding_mask: Any) -> Any:
        return super().forward(levels, torch.zeros(len(levels[0]), 64, 96, dtype=torch.bool))


class MapsForTokens(DeformablePixelEncoder):
    def forward(self, *args: Any) -> Any:
        features = super().forward(*args)
        return features._replace(tokens=features.tokens.transpose(1, 2))


class SeesPadding(DeformablePixelEncoder):
    def forward(self, *args: Any) -> Any:
        features = super().forward(*args)
        return features._replace(tokens=features.tokens + features.tokens.mean(1, keepdim=True))


class Inverted(DeformablePixelEncoder):
    def forward(self, *args: Any) -> Any:
        features = super().forward(*args)
        padding_mask = None if features.padding_mask is None else ~features.padding_mask
        return features._replace(padding_mask=padding_mask)


class FloatMask(DeformablePixelEncoder):
    def forward(self, *args: Any) -> Any:
        features = super().forward(*args)
        padding_mask = None if features.padding_mask is None else features.padding_mask.float()
        return features._replace(padding_mask=padding_mask)


class SwappedRatios(DeformablePixelEncoder):
    def forward(self, *args: Any) -> Any:
        features = super().forward(*args)
        return features._replace(valid_ratios=features.valid_ratios.flip(-1))


class RatiosOfOne(DeformablePixelEncoder):
    def forward(self, *args: Any) -> Any:
        features = super().forward(*args)
        return features._replace(valid_ratios=torch.ones_like(features.valid_ratios))


class DetachedLevel(DeformablePixelEncoder):
    def forward(self, levels: Any, padding_mask: Any) -> Any:
        return super().forward([levels[0], levels[1].detach(), levels[2]], padding_mask)


class ChangesLevels(DeformablePixelEncoder):
    def forward(self, levels: Any, padding_mask: Any) -> Any:
        return super().forward([x.mul_(2) for x in levels], padding_mask)


PIXEL_ENCODERS = {
    "inverted": (Inverted, r"padding_mask is wrong at 378 of 378 tokens; expected True where"),
    "float mask": (FloatMask, r"padding_mask has dtype torch\.float32; expected torch\.bool"),
    "swapped ratios": (SwappedRatios, r"valid_ratios\[:, 0, 0\] is .*; expected the share of the level's width"),
    "ratios of one": (RatiosOfOne, r"valid_ratios\[:, 0, 0\] is \[1\.0, 1\.0, 1\.0\]; expected the share"),
    "detached": (DetachedLevel, r"no gradient of tokens reaches the argument levels\[1\]"),
    "in place": (ChangesLevels, r"it changes its arguments in place: levels\[0\], levels\[1\], levels\[2\]"),
    "shapes": (SwappedShapes, r"spatial_shapes are \[\(12, 8\), .*; expected \[\(8, 12\)"),
    "precision": (HalfRatios, r"valid_ratios has dtype torch\.float16; expected torch\.float32"),
    "no mask": (NoPaddingMask, r"padding_mask is None; expected \(B, T\)"),
    "always a mask": (AlwaysPaddingMask, "padding_mask is not None although no image is padded"),
    "layout": (MapsForTokens, r"tokens has shape \(1, 32, 126\); expected \(1, 126, 32\)"),
    "padding": (SeesPadding, "values in padding change the result"),
}


@pytest.mark.parametrize(("encoder", "message"), PIXEL_ENCODERS.values(), ids=PIXEL_ENCODERS)
def test_broken_pixel_encoder(encoder: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_pixel_encoder(encoder)


class InPixels(LocationDecoder):
    def _locate(self, *args: Any) -> Tensor:
        return 100 * super()._locate(*args)


class HalfLocations(LocationDecoder):
    def forward(self, *args: Any) -> Any:
        located = super().forward(*args)
        return located._replace(layers=[x._replace(locations=x.locations.half()) for x in located.layers])


class TooManyQueries(LocationDecoder):
    def forward(self, *args: Any) -> Any:
        located = super().forward(*args)
        return located._replace(queries=located.queries.repeat(1, 2, 1))


class NoPredictions(LocationDecoder):
    def forward(self, *args: Any) -> Any:
        return super().forward(*args)._replace(layers=[])


class GradientThroughBoxes(LocationDecoder):
    def forward(self, *args: Any) -> Any:
        located = super().forward(*args)
        return located._replace(boxes_cxcywh_norm=located.layers[-1].locations)


class Replaces(LocationDecoder):
    """A location decoder with another value of one field."""

    def forward(self, *args: Any) -> Any:
        return self.replace(super().forward(*args))

    def replace(self, located: LocatedQueries) -> LocatedQueries:
        raise NotImplementedError


class NoQueries(Replaces):
    def replace(self, located: LocatedQueries) -> LocatedQueries:
        layers = [LocationLayer(*(x[:, :0] for x in layer)) for layer in located.layers]
        return located._replace(queries=located.queries[:, :0], layers=layers)


class DetachedQueries(Replaces):
    def replace(self, located: LocatedQueries) -> LocatedQueries:
        return located._replace(queries=located.queries.detach())


class DetachedHead(Replaces):
    def replace(self, located: LocatedQueries) -> LocatedQueries:
        return located._replace(layers=[LocationLayer(*(x.detach() for x in layer)) for layer in located.layers])


class AlwaysPositions(Replaces):
    def replace(self, located: LocatedQueries) -> LocatedQueries:
        return located._replace(query_pos=located.queries)


class NeverBoxes(Replaces):
    def replace(self, located: LocatedQueries) -> LocatedQueries:
        return located._replace(boxes_cxcywh_norm=None)


class ThreeTimes(Replaces):
    def replace(self, located: LocatedQueries) -> LocatedQueries:
        return located._replace(layers=located.layers * 3)


class ReversedInTraining(Replaces):
    def replace(self, located: LocatedQueries) -> LocatedQueries:
        return located._replace(layers=located.layers[::-1])


class ProposalsOfQueries(Replaces):
    def replace(self, located: LocatedQueries) -> LocatedQueries:
        return located._replace(proposals=LocationLayer(*(x[:, :5] for x in located.proposals or [])))


BY_HEAD = {"THING_CLASSIFIER": "location_decoder"}
TWO_STAGE = {"LOCATION_DECODER.TWO_STAGE": True}
LOCATION_DECODERS = {
    "no queries": (NoQueries, {}, r"queries are \(1, 0, 32\); expected \(B, N, D\) with 1 <= N <= 5"),
    "detached queries": (DetachedQueries, {}, "queries have no gradient in training; do not detach them"),
    "detached head": (DetachedHead, {}, r"layers\[0\] have no gradient in training"),
    "positions": (AlwaysPositions, {}, r"query_pos is not None; expected a tensor with MASK_DECODER\.THING_POSITION"),
    "no boxes": (NeverBoxes, {"MASK_DECODER.BOX_PRIOR": True}, r"boxes_cxcywh_norm is None; expected a tensor with"),
    "three times": (ThreeTimes, BY_HEAD, r"3 predictions \(`layers`\) at test; expected 1"),
    "order": (ReversedInTraining, BY_HEAD, r"the result in training .* is not that of evaluation: layers\[-1\]"),
    "proposals": (
        ProposalsOfQueries,
        TWO_STAGE,
        r"proposals\.class_logits has shape \(1, 5, 3\); expected \(1, 126, 3\)",
    ),
    "pixels": (InPixels, {}, r"locations are not in \[0, 1\]"),
    "precision": (HalfLocations, {}, r"locations has dtype torch\.float16; expected torch\.float32"),
    "queries": (TooManyQueries, {}, r"queries are \(1, 10, 32\); expected \(B, N, D\) with 1 <= N <= 5"),
    "no head in training": (NoPredictions, {}, r"no predictions \(`layers`\) in training"),
    "no head at test": (
        NoPredictions,
        BY_HEAD,
        r"0 predictions .* at test; expected 1",
    ),
    "boxes": (GradientThroughBoxes, {"MASK_DECODER.BOX_PRIOR": True}, "boxes_cxcywh_norm have a gradient"),
}


@pytest.mark.parametrize(("decoder", "keys", "message"), LOCATION_DECODERS.values(), ids=LOCATION_DECODERS)
def test_broken_location_decoder(decoder: Any, keys: dict[str, Any], message: str) -> None:
    cfg = small_config()
    cfg.merge_from_list([x for key, value in keys.items() for x in (f"MODEL.PSF.{key}", value)])
    with pytest.raises(AssertionError, match=message):
        check_location_decoder(decoder, cfg)
