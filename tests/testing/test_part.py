"""Rules for every part of the network, here with a mask decoder; right parts that are built in unusual ways pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.config import configurable
from torch import Tensor, nn

from psf.modeling import LocationDecoder, MaskDecoder
from psf.structures import DecodedMasks
from psf.testing import check_location_decoder, check_mask_decoder, small_config

OWN_DATA = "small/psf_small.yaml"


class Queries(MaskDecoder):
    """A mask decoder that changes its queries, by `change`, before it decodes them."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.setup()

    def setup(self) -> None:
        """Make further modules and parameters."""

    def forward(self, queries: Tensor, features: Any, *args: Any, **kwargs: Any) -> DecodedMasks:
        return super().forward(self.change(queries, features), features, *args, **kwargs)

    def change(self, queries: Tensor, features: Any) -> Tensor:
        return queries


class OneSize(Queries):
    def setup(self) -> None:
        self.bias = nn.Parameter(torch.zeros(126, 1))

    def change(self, queries: Tensor, features: Any) -> Tensor:
        return queries + (features.tokens[:1, :, :1] * 0 + self.bias).sum()


class TwoImages(Queries):
    def change(self, queries: Tensor, features: Any) -> Tensor:
        first, *second = queries
        return torch.stack((first, *second[:1]))


class DetachesQueries(Queries):
    def change(self, queries: Tensor, features: Any) -> Tensor:
        return queries.detach()


class DetachesTokens(MaskDecoder):
    def forward(self, queries: Tensor, features: Any, *args: Any, **kwargs: Any) -> DecodedMasks:
        return super().forward(queries, features._replace(tokens=features.tokens.detach()), *args, **kwargs)


class IgnoresPositions(MaskDecoder):
    def forward(self, queries: Tensor, features: Any, *args: Any, **kwargs: Any) -> DecodedMasks:
        return super().forward(queries, features, None, **kwargs)


class IgnoresMaskFeatures(MaskDecoder):
    def forward(self, queries: Tensor, features: Any, *args: Any, **kwargs: Any) -> DecodedMasks:
        return super().forward(queries, features._replace(mask_features=None), *args, **kwargs)


class CentersInTraining(Queries):
    def change(self, queries: Tensor, features: Any) -> Tensor:
        return queries - queries.mean(0) if self.training else queries


class BatchNorm(Queries):
    def setup(self) -> None:
        self.norm = nn.BatchNorm1d(32)

    def change(self, queries: Tensor, features: Any) -> Tensor:
        return self.norm(queries.transpose(1, 2)).transpose(1, 2)


class InPlace(Queries):
    def change(self, queries: Tensor, features: Any) -> Tensor:
        return queries.mul_(2)


class InPlaceInTraining(Queries):
    def change(self, queries: Tensor, features: Any) -> Tensor:
        features.tokens.add_(1.0 if self.training else 0.0)
        return queries


class OtherWithoutMask(Queries):
    def change(self, queries: Tensor, features: Any) -> Tensor:
        return queries if features.padding_mask is None else 2 * queries


class Repeated(MaskDecoder):
    """Doubles a query_pos that has a batch dimension."""

    def forward(self, queries: Tensor, features: Any, query_pos: Any = None, **kwargs: Any) -> DecodedMasks:
        is_repeated = query_pos is not None and query_pos.dim() == 3
        return super().forward(queries, features, 2 * query_pos if is_repeated else query_pos, **kwargs)


class Float64(MaskDecoder):
    def forward(self, *args: Any, **kwargs: Any) -> DecodedMasks:
        masks, refined = super().forward(*args, **kwargs)
        return DecodedMasks([x.double() for x in masks], refined)


class ReversedInTraining(MaskDecoder):
    def forward(self, *args: Any, **kwargs: Any) -> DecodedMasks:
        masks, refined = super().forward(*args, **kwargs)
        return DecodedMasks(masks, refined[::-1] if self.training else refined)


class NoBoxes(MaskDecoder):
    def forward(self, queries: Tensor, features: Any, query_pos: Any = None, *, layer: Any = None) -> DecodedMasks:
        return super().forward(queries, features, query_pos, layer=layer)


class NeedsMore(MaskDecoder):
    @configurable
    def __init__(self, *, temperature: float, **kwargs: Any):
        super().__init__(**kwargs)


class Lazy(Queries):
    def setup(self) -> None:
        self.project = nn.LazyLinear(32)

    def change(self, queries: Tensor, features: Any) -> Tensor:
        return self.project(queries)


class ObjectInState(MaskDecoder):
    def get_extra_state(self) -> Any:
        return small_config()

    def set_extra_state(self, state: Any) -> None:
        pass


WRONG = {
    "one size": (OneSize, "", "fails for 2 images padded to 72 x 56 pixels: RuntimeError: The size of tensor"),
    "two images": (TwoImages, "", "fails for 3 images padded to 64 x 96 pixels: RuntimeError"),
    "detached queries": (DetachesQueries, "", "no gradient of mask_scores reaches the argument queries"),
    "detached tokens": (DetachesTokens, "", "no gradient of mask_scores reaches the argument tokens"),
    "positions": (IgnoresPositions, "", "reaches the argument query_pos, .*for stuff queries"),
    "mask features": (
        IgnoresMaskFeatures,
        OWN_DATA,
        r"mask_scores has shape \(1, 5, 16, 24\); expected \(1, 5, 32, 48\)",
    ),
    "centers": (CentersInTraining, "", "in training the result of image 0 depends on .* their queries; use no batch"),
    "batch norm": (BatchNorm, "", "in training the result of image 0 depends on other images"),
    "in place": (InPlace, "", "it changes its arguments in place: queries"),
    "in place, training": (InPlaceInTraining, "", "it changes its arguments in place: tokens"),
    "no mask": (OtherWithoutMask, "", "the result for padding_mask None differs from that for .* False everywhere"),
    "repeated": (Repeated, "", r"the result for query_pos \(B, N, D\) differs from that for \(N, D\)"),
    "float64": (Float64, "", r"mask_scores has dtype torch\.float64; expected torch\.float32"),
    "order": (ReversedInTraining, "", "the result in training .* is not that of evaluation: refined_queries 0"),
    "no boxes": (NoBoxes, "", "it fails for 1 images .* unexpected keyword argument 'boxes'"),
    "from_config": (NeedsMore, "", "NeedsMore: it cannot be built: TypeError: .*temperature"),
    "lazy": (
        Lazy,
        "",
        r"parameters without a shape before the first call: project\.weight, project\.bias; .*LazyLinear",
    ),
    "state": (ObjectInState, "", "a second instance does not load its state_dict: UnpicklingError"),
}


@pytest.mark.parametrize(("decoder", "config", "message"), WRONG.values(), ids=WRONG)
def test_wrong_part(decoder: Any, config: str, message: str) -> None:
    with pytest.raises(AssertionError, match=f"(?s){message}"):
        check_mask_decoder(decoder, small_config(config))


def test_both_configs() -> None:
    with pytest.raises(AssertionError, match=r"mask_scores has shape.*with the keys of configs/small/psf_small\.yaml"):
        check_mask_decoder(IgnoresMaskFeatures)


def test_queries_that_influence_one_another() -> None:
    cfg = small_config(OWN_DATA)
    cfg.MODEL.PSF.MASK_DECODER.THING_SELF_ATTENTION = True
    with pytest.raises(AssertionError, match="thing queries influence one another"):
        check_mask_decoder(MaskDecoder, cfg)


class Frozen(Queries):
    def setup(self) -> None:
        self.requires_grad_(False)


class Integers(Queries):
    def setup(self) -> None:
        self.register_buffer("count", torch.tensor(3))
        self.index = nn.Parameter(torch.tensor([0]), requires_grad=False)

    def change(self, queries: Tensor, features: Any) -> Tensor:
        return queries * self.count + queries[:, self.index]


class LayersAreANumber(MaskDecoder):
    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.blocks = self.layers
        del self.layers
        self.layers = 2  # type: ignore[assignment]

    def forward(self, *args: Any, **kwargs: Any) -> DecodedMasks:
        self.layers = self.blocks
        decoded = super().forward(*args, **kwargs)
        del self.layers
        self.layers = 2  # type: ignore[assignment]
        return decoded


class HasLambda(Queries):
    def setup(self) -> None:
        self.function = lambda x: 2 * x

    def change(self, queries: Tensor, features: Any) -> Tensor:
        return self.function(queries)


class WeightNorm(Queries):
    def setup(self) -> None:
        self.project = nn.utils.parametrizations.weight_norm(nn.Linear(32, 32))

    def change(self, queries: Tensor, features: Any) -> Tensor:
        return self.project(queries)


def in_a_function() -> Any:
    class Local(MaskDecoder):
        pass

    return Local


RIGHT = {
    "frozen": Frozen,
    "integers": Integers,
    "layers": LayersAreANumber,
    "lambda": HasLambda,
    "weight norm": WeightNorm,
    "in a function": in_a_function(),
}


@pytest.mark.parametrize("decoder", RIGHT.values(), ids=RIGHT)
def test_right_part(decoder: Any) -> None:
    check_mask_decoder(decoder, small_config())


def test_number_of_queries_from_the_data() -> None:
    cfg = small_config()
    cfg.MODEL.PSF.NUM_THING_QUERIES = -1
    cfg.freeze()
    check_location_decoder(LocationDecoder, cfg)


class NotTwoStage(LocationDecoder):
    """Ignores TWO_STAGE and BOX_REFINEMENT, which are options of psf's own decoder."""

    @classmethod
    def from_config(cls, cfg: Any, num_classes: int) -> dict[str, Any]:
        return {**super().from_config(cfg, num_classes), "two_stage": False, "box_refinement": False}


def test_options_of_psfs_own_decoder() -> None:
    check_location_decoder(NotTwoStage)
