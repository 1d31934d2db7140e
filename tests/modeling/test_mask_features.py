"""Features at a finer stride, and masks that are refined with them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from psf.modeling import MaskDecoder, MaskFeatureMap
from psf.modeling.interfaces import MaskDecoderDepth
from psf.structures import FeatureTokens, MaskFeatures
from tests.features import random_features
from tests.models import tiny_config

SHAPES = [(4, 6), (2, 3)]
FINE = (8, 12)
DIM, CHANNELS = 64, 32


def build_map() -> MaskFeatureMap:
    torch.manual_seed(0)
    return MaskFeatureMap(in_channels=5, dim=DIM).double()


def backbone_map() -> Tensor:
    return torch.randn(2, 5, *FINE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def build_decoder(*, mask_features: bool = True, activation: str = "sigmoid") -> MaskDecoder:
    torch.manual_seed(0)
    cfg = tiny_config({"MASK_DECODER.MASK_ACTIVATION": activation})
    arguments = MaskDecoder.from_config(cfg, MaskDecoderDepth(num_layers=2, self_attention=False))
    return MaskDecoder(**{**arguments, "num_levels": 2, "mask_features": mask_features}).double()


def memory(padding: Tensor | None = None, shares: list[tuple[float, float]] | None = None) -> FeatureTokens:
    features = random_features(SHAPES, dim=DIM, **({} if shares is None else {"own_shares": shares}))
    values = torch.randn(2, CHANNELS, *FINE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return features._replace(mask_features=MaskFeatures(values, padding))


def queries() -> Tensor:
    return torch.randn(2, 3, DIM, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_the_map_by_its_definition():
    """The projected map plus the finest level, projected and upsampled; a ReLU, the 3x3 convolution, a ReLU."""
    one, features, feature = build_map(), random_features(SHAPES, dim=DIM), backbone_map()
    finest = torch.stack([image[:24].T.reshape(DIM, 4, 6) for image in features.tokens])
    projected = (
        torch.einsum("oc,bchw->bohw", one.top_down.weight[:, :, 0, 0], finest) + one.top_down.bias[:, None, None]
    )
    total = one.lateral(feature) + F.interpolate(projected, size=FINE, mode="bilinear")
    expected = one.output(total.clamp(min=0)).clamp(min=0)
    result = one(feature, features, None)
    torch.testing.assert_close(result.mask_features.values, expected, rtol=0, atol=1e-12)
    assert result.mask_features.padding_mask is None and result._replace(mask_features=None) == features
    assert random_features(SHAPES, dim=DIM).finest(1).mask_features is None


def test_padding_of_the_map():
    padding = torch.zeros(2, 16, 24, dtype=torch.bool)
    padding[1, 8:], padding[1, :, 12:] = True, True
    mask = build_map()(backbone_map(), random_features(SHAPES, dim=DIM), padding).mask_features.padding_mask
    assert not mask[0].any() and not mask[1, :4, :6].any() and mask[1].sum() == 96 - 24


@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
def test_masks_start_as_those_of_the_levels(activation: str):
    """Upsampled before the activation."""
    refined, plain = build_decoder(activation=activation), build_decoder(mask_features=False, activation=activation)
    plain.load_state_dict({name: x for name, x in refined.state_dict().items() if "mask_embed" not in name})
    masks = refined(queries(), memory()).mask_scores
    coarse = plain(queries(), memory()).mask_scores
    assert [tuple(x.shape) for x in masks] == [(2, 3, *FINE)] * 3
    inverse = torch.logit if activation == "sigmoid" else None
    if inverse is not None:
        for fine, one in zip(masks, coarse, strict=True):
            expected = F.interpolate(inverse(one), size=FINE, mode="bilinear").sigmoid()
            torch.testing.assert_close(fine, expected, rtol=0, atol=1e-9)


def test_refinement_is_query_times_features():
    """With a weight that picks the first channel, each logit gains the first number of the projected query times it."""
    decoder = build_decoder()
    before = decoder(queries(), memory(), layer=1).mask_scores[0]
    head, attention = decoder.layers[0].mask_head, decoder.layers[0].attention
    with torch.no_grad():
        head.mask_embed.weight[0, 0] = 1.0
    after = decoder(queries(), memory(), layer=1).mask_scores[0]
    projected = attention.query_proj(queries())[..., 0]  # (B, N)
    gain = projected[..., None, None] * memory().mask_features.values[:, None, 0]
    torch.testing.assert_close(torch.logit(after) - torch.logit(before), gain, rtol=0, atol=1e-9)


def test_padding_is_zero_and_changes_nothing():
    padding = torch.zeros(2, *FINE, dtype=torch.bool)
    padding[1, 4:], padding[1, :, 6:] = True, True
    decoder, shares = build_decoder(), [(1.0, 1.0), (0.5, 0.5)]
    with torch.no_grad():
        for head in (*(layer.mask_head for layer in decoder.layers), decoder.tail_head):
            torch.nn.init.normal_(head.mask_embed.weight)
    features = memory(padding, shares)
    masks = decoder(queries(), features).mask_scores
    noise = torch.where(padding[:, None], torch.randn(2, CHANNELS, *FINE, dtype=torch.float64), 0.0)
    noisy = features._replace(mask_features=MaskFeatures(features.mask_features.values + noise, padding))
    for one, other in zip(masks, decoder(queries(), noisy).mask_scores, strict=True):
        assert (one[1, :, 4:] == 0).all() and (one[1, :, :, 6:] == 0).all() and (one[0] > 0).all()
        assert torch.equal(one, other)


def test_everything_learns():
    one, decoder, features = build_map(), build_decoder(), random_features(SHAPES, dim=DIM)
    for step in range(2):  # the first step moves the products away from 0
        loss = sum(x.square().sum() for x in decoder(queries(), one(backbone_map(), features, None)).mask_scores)
        gradients = torch.autograd.grad(loss, [*one.parameters(), decoder.tail_head.mask_embed.weight])
        assert gradients[-1].any() and all(gradient.any() for gradient in gradients) == (step == 1)
        with torch.no_grad():
            decoder.tail_head.mask_embed.weight -= 0.01 * gradients[-1]
