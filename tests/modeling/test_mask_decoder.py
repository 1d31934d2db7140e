"""From queries to masks and refined queries, layer by layer; and their classes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.plain_mask_decoder import plain_decode
from psf.modeling import MaskDecoder, MaskFeatureMap, QueryClassifier
from psf.modeling.interfaces import MaskDecoderDepth
from psf.structures import DecodedMasks, FeatureTokens, MaskFeatures
from tests.features import random_features
from tests.models import tiny_config

SHAPES = [(4, 5), (2, 3), (1, 1)]
# Of the decoders that refine their masks.
TWO_SHAPES = [(4, 6), (2, 3)]
FINE = (8, 12)
DIM, CHANNELS = 64, 32
DEFAULTS: dict[str, Any] = {
    "dim": 16,
    "num_heads": 4,
    "num_levels": 3,
    "num_layers": 3,
    "self_attention": True,
    "feedforward_dim": 12,
    "mask_activation": "sigmoid",
    "relu_gradient": "plain",
    "ignore_padding": True,
    "position_in_stream": False,
    "key_position": False,
}


def build(**changes: Any) -> MaskDecoder:
    torch.manual_seed(0)
    decoder = MaskDecoder(**{**DEFAULTS, **changes}).double()
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.4)
    return decoder


@pytest.fixture
def features() -> FeatureTokens:
    return random_features(SHAPES, dim=16, own_shares=[(1.0, 1.0), (0.5, 0.6)])


@pytest.fixture
def queries() -> Tensor:
    return torch.randn(2, 4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def position() -> Tensor:
    return torch.randn(4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def assert_same(ours: list[Tensor], expected: list[Tensor]) -> None:
    assert len(ours) == len(expected)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


class TestAgainstThePlainWay:
    @pytest.mark.parametrize(
        "self_attention, in_stream, key_position, ignore_padding", list(itertools.product([False, True], repeat=4))
    )
    def test_all_layers(self, features, queries, position, self_attention, in_stream, key_position, ignore_padding):
        decoder = build(
            self_attention=self_attention,
            position_in_stream=in_stream,
            key_position=key_position,
            ignore_padding=ignore_padding,
        )
        decoded, plain = decoder(queries, features, position), plain_decode(decoder, queries, features, position)
        assert_same(decoded.mask_scores, [*plain.block_masks, plain.tail_mask])
        assert_same(decoded.refined_queries, plain.queries)

    def test_without_position(self, features, queries):
        for in_stream in (False, True):
            decoder = build(position_in_stream=in_stream)
            plain = plain_decode(decoder, queries, features, None)
            assert_same(decoder(queries, features).mask_scores, [*plain.block_masks, plain.tail_mask])

    def test_gradients(self, features, queries, position):
        decoder = build(num_layers=2, mask_activation="relu")
        plain = plain_decode(decoder, queries, features, position)
        decoded = decoder(queries, features, position)
        gradients = []
        for masks, refined in ((decoded.mask_scores, decoded.refined_queries), (None, plain.queries)):
            masks = [*plain.block_masks, plain.tail_mask] if masks is None else masks
            loss = sum(m.square().sum() for m in masks) + sum(q[..., 0].sum() for q in refined)
            gradients.append(torch.autograd.grad(loss, list(decoder.parameters())))
        for (name, _), a, b in zip(decoder.named_parameters(), *gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")
            assert a.any(), name


class TestLayer:
    @pytest.mark.parametrize("in_stream", [False, True])
    def test_one_layer_is_that_entry_of_all(self, features, queries, position, in_stream):
        decoder = build(position_in_stream=in_stream)
        everything = decoder(queries, features, position)
        for k in (1, 2, 3):
            one = decoder(queries, features, position, layer=k)
            assert_same(one.mask_scores, [everything.mask_scores[k - 1]])
            assert_same(one.refined_queries, [everything.refined_queries[k - 1]])

    def test_beyond_the_depth_is_the_last_block(self, features, queries):
        decoder = build()
        last, beyond = decoder(queries, features, layer=3), decoder(queries, features, layer=7)
        assert_same(beyond.mask_scores, last.mask_scores)
        assert_same(beyond.refined_queries, last.refined_queries)

    def test_minus_one_is_the_tail_with_the_last_queries(self, features, queries, position):
        decoder = build()
        everything, last = decoder(queries, features, position), decoder(queries, features, position, layer=-1)
        assert len(everything.mask_scores) == 4 and len(everything.refined_queries) == 3
        assert_same(last.mask_scores, everything.mask_scores[-1:])
        assert_same(last.refined_queries, everything.refined_queries[-1:])
        assert not torch.allclose(last.mask_scores[0], everything.mask_scores[2])

    def test_masks_that_nobody_wants_are_not_made(self, features, queries):
        decoder, made = build(), []
        for i, head in enumerate([*(block.mask_head for block in decoder.layers), decoder.tail_head]):
            head.register_forward_hook(lambda *_, i=i: made.append(i))
        for layer, expected in ((-1, [3]), (2, [1]), (None, [0, 1, 2, 3])):
            made.clear()
            decoder(queries, features, layer=layer)
            assert made == expected

    @pytest.mark.parametrize("layer", [0, -2])
    def test_bad_layer(self, features, queries, layer):
        with pytest.raises(ValueError, match=f"TEST_LAYER is {layer}: expected a layer from 1, or -1"):
            build()(queries, features, layer=layer)


class TestQueries:
    @pytest.mark.parametrize("in_stream", [False, True])
    def test_may_be_permuted(self, features, queries, position, in_stream):
        decoder, order = build(position_in_stream=in_stream), torch.tensor([2, 0, 3, 1])
        before, after = decoder(queries, features, position), decoder(queries[:, order], features, position[order])
        assert_same(after.mask_scores, [m[:, order] for m in before.mask_scores])
        assert_same(after.refined_queries, [q[:, order] for q in before.refined_queries])

    def test_without_self_attention_each_is_alone(self, features, queries):
        decoder = build(self_attention=False)
        assert_same(
            decoder(queries[:, 1:2], features).mask_scores, [m[:, 1:2] for m in decoder(queries, features).mask_scores]
        )
        together = build()
        alone = together(queries[:, 1:2], features).mask_scores[-1]
        assert not torch.allclose(alone, together(queries, features).mask_scores[-1][:, 1:2])

    def test_batch_of_two_equals_two_of_one(self, features, queries, position):
        decoder = build()
        both = decoder(queries, features, position)
        for b in range(2):
            names = ("tokens", "pos_embed", "padding_mask", "valid_ratios")
            image = features._replace(**{name: getattr(features, name)[b : b + 1] for name in names})
            one = decoder(queries[b : b + 1], image, position)
            assert_same(one.mask_scores, [m[b : b + 1] for m in both.mask_scores])

    def test_position_per_image(self, features, queries, position):
        decoder = build()
        one, both = (decoder(queries, features, p) for p in (position, position.expand(2, -1, -1)))
        assert_same(one.mask_scores, both.mask_scores)


def test_no_layers():
    with pytest.raises(ValueError, match="MASK_DECODER: a mask decoder has 0 layers; expected at least 1"):
        build(num_layers=0)


class TestClassifier:
    def test_each_layer_has_its_own(self, queries):
        torch.manual_seed(0)
        classifier = QueryClassifier(16, 3, num_outputs=5).double()
        decoded = DecodedMasks([], [queries, queries + 1, queries + 2])
        logits = classifier(decoded)
        assert_same(logits, [fc(q) for fc, q in zip(classifier.layers, decoded.refined_queries, strict=True)])
        assert logits[0].shape == (2, 4, 5)

    @pytest.mark.parametrize("layer, used", [(1, 0), (2, 1), (3, 2), (9, 2), (-1, 2)])
    def test_one_layer(self, queries, layer, used):
        classifier = QueryClassifier(16, 3, num_outputs=1).double()
        (logits,) = classifier(DecodedMasks([], [queries]), layer)
        torch.testing.assert_close(logits, classifier.layers[used](queries))


def build_refining(*, mask_features: bool = True, activation: str = "sigmoid") -> MaskDecoder:
    torch.manual_seed(0)
    cfg = tiny_config({"MASK_DECODER.MASK_ACTIVATION": activation})
    arguments = MaskDecoder.from_config(cfg, MaskDecoderDepth(num_layers=2, self_attention=False))
    return MaskDecoder(**{**arguments, "num_levels": 2, "mask_features": mask_features}).double()


def memory(padding: Tensor | None = None, shares: list[tuple[float, float]] | None = None) -> FeatureTokens:
    features = random_features(TWO_SHAPES, dim=DIM, **({} if shares is None else {"own_shares": shares}))
    values = torch.randn(2, CHANNELS, *FINE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return features._replace(mask_features=MaskFeatures(values, padding))


def random_queries() -> Tensor:
    return torch.randn(2, 3, DIM, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
def test_refined_masks_start_as_those_of_the_levels(activation: str):
    """Upsampled before the activation."""
    refined, plain = build_refining(activation=activation), build_refining(mask_features=False, activation=activation)
    plain.load_state_dict({name: x for name, x in refined.state_dict().items() if "mask_embed" not in name})
    masks = refined(random_queries(), memory()).mask_scores
    coarse = plain(random_queries(), memory()).mask_scores
    assert [tuple(x.shape) for x in masks] == [(2, 3, *FINE)] * 3
    inverse = torch.logit if activation == "sigmoid" else None
    if inverse is not None:
        for fine, one in zip(masks, coarse, strict=True):
            expected = F.interpolate(inverse(one), size=FINE, mode="bilinear").sigmoid()
            torch.testing.assert_close(fine, expected, rtol=0, atol=1e-9)


def test_refinement_is_query_times_features():
    """With a weight that picks the first channel, each logit gains the first number of the projected query times it."""
    decoder = build_refining()
    before = decoder(random_queries(), memory(), layer=1).mask_scores[0]
    head, attention = decoder.layers[0].mask_head, decoder.layers[0].attention
    with torch.no_grad():
        head.mask_embed.weight[0, 0] = 1.0
    after = decoder(random_queries(), memory(), layer=1).mask_scores[0]
    projected = attention.query_proj(random_queries())[..., 0]  # (B, N)
    gain = projected[..., None, None] * memory().mask_features.values[:, None, 0]
    torch.testing.assert_close(torch.logit(after) - torch.logit(before), gain, rtol=0, atol=1e-9)


def test_padding_of_refined_masks_is_zero_and_changes_nothing():
    padding = torch.zeros(2, *FINE, dtype=torch.bool)
    padding[1, 4:], padding[1, :, 6:] = True, True
    decoder, shares = build_refining(), [(1.0, 1.0), (0.5, 0.5)]
    with torch.no_grad():
        for head in (*(layer.mask_head for layer in decoder.layers), decoder.tail_head):
            torch.nn.init.normal_(head.mask_embed.weight)
    features = memory(padding, shares)
    masks = decoder(random_queries(), features).mask_scores
    noise = torch.where(padding[:, None], torch.randn(2, CHANNELS, *FINE, dtype=torch.float64), 0.0)
    noisy = features._replace(mask_features=MaskFeatures(features.mask_features.values + noise, padding))
    for one, other in zip(masks, decoder(random_queries(), noisy).mask_scores, strict=True):
        assert (one[1, :, 4:] == 0).all() and (one[1, :, :, 6:] == 0).all() and (one[0] > 0).all()
        assert torch.equal(one, other)


def test_features_and_refinement_learn():
    one, decoder, features = (
        MaskFeatureMap(in_channels=5, dim=DIM).double(),
        build_refining(),
        random_features(TWO_SHAPES, dim=DIM),
    )
    feature = torch.randn(2, 5, *FINE, dtype=torch.float64)
    for step in range(2):  # the first step moves the products away from 0
        loss = sum(x.square().sum() for x in decoder(random_queries(), one(feature, features, None)).mask_scores)
        gradients = torch.autograd.grad(loss, [*one.parameters(), decoder.tail_head.mask_embed.weight])
        assert gradients[-1].any() and all(gradient.any() for gradient in gradients) == (step == 1)
        with torch.no_grad():
            decoder.tail_head.mask_embed.weight -= 0.01 * gradients[-1]
