"""Where deformable attention looks, with what weights, and how it starts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from psf.modeling.deformable_attention import DeformableAttention, FeedForward
from psf.structures import FeatureTokens
from tests.features import random_features
from tests.naive import naive_ms_deform_attn

SHAPES = [(5, 8), (3, 4)]


def ramp(shapes: list[tuple[int, int]]) -> FeatureTokens:
    """Tokens of two channels: the x and y of their own pixel centre, in [0, 1]. Sampling inside gives the place."""
    centres = [
        torch.tensor([[(x + 0.5) / w, (y + 0.5) / h] for y in range(h) for x in range(w)], dtype=torch.float64)
        for h, w in shapes
    ]
    tokens = torch.cat(centres)[None]
    ratios = torch.ones(1, len(shapes), 2, dtype=torch.float64)
    return FeatureTokens(tokens, torch.zeros_like(tokens), shapes, None, ratios)


def attend(module: DeformableAttention, queries: Tensor, reference_points: Tensor, features: FeatureTokens) -> Tensor:
    return module(queries, reference_points, module.values(features), features.spatial_shapes)


def place_finder(num_levels: int, offsets: list[list[list[float]]]) -> DeformableAttention:
    """One head, projections that change nothing, offsets [level][point] = (x, y), all points of the same weight."""
    module = DeformableAttention(dim=2, num_heads=1, num_levels=num_levels, num_points=len(offsets[0])).double()
    with torch.no_grad():
        for linear in (module.value_proj, module.output_proj):
            linear.weight.copy_(torch.eye(2))
        module.sampling_offsets.bias.copy_(torch.tensor(offsets, dtype=torch.float64).flatten())
    return module


def test_offsets_around_a_point_are_pixels():
    module = place_finder(2, [[[1.0, 0.0], [0.0, 2.0]], [[0.0, 1.0], [0.0, 0.0]]])
    reference_points = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    place = attend(module, torch.zeros(1, 1, 2, dtype=torch.float64), reference_points, ramp([(8, 4), (4, 2)]))[0, 0]
    # x: (0.5 + 1/4) + 0.5 + 0.5 + 0.5 = 2.25; y: 0.5 + (0.5 + 2/8) + (0.5 + 1/4) + 0.5 = 2.5; the mean of four.
    torch.testing.assert_close(place, torch.tensor([2.25, 2.5], dtype=torch.float64) / 4, rtol=0, atol=1e-12)


def test_offsets_in_a_box_are_shares_of_it():
    box = torch.tensor([0.5, 0.5, 0.4, 0.8], dtype=torch.float64).view(1, 1, 1, 4)
    # Location = centre + offset / P * size / 2. With four points a step is 0.05 in x and 0.1 in y, and the mean of the
    # four is x: 0.5 + (0.05 + 0 + 0.1 + 0) / 4; y: 0.5 + (0 - 0.1 + 0.2 + 0) / 4. With two points it is 0.1 and 0.2.
    for offsets, expected in (
        ([[1.0, 0.0], [0.0, -1.0], [2.0, 2.0], [0.0, 0.0]], [0.5375, 0.525]),
        ([[1.0, 0.0], [0.0, -1.0]], [0.55, 0.4]),
    ):
        queries = torch.zeros(1, 1, 2, dtype=torch.float64)
        place = attend(place_finder(1, [offsets]), queries, box, ramp([(10, 20)]))[0, 0]
        torch.testing.assert_close(place, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("padded", [False, True])
def test_equals_naive_loops(padded):
    torch.manual_seed(0)
    module = DeformableAttention(dim=8, num_heads=2, num_levels=2, num_points=3).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.7)
    features = random_features(SHAPES, own_shares=[(1.0, 1.0), (0.5, 0.7)] if padded else None)
    queries = torch.randn(2, 4, 8, dtype=torch.float64)
    reference_points = torch.rand(2, 4, 2, 2, dtype=torch.float64)

    value = module.value_proj(features.tokens)
    if features.padding_mask is not None:
        value[features.padding_mask] = 0  # after the projection, so that its bias is gone too
    weights = module.attention_weights(queries).view(2, 4, 2, 6).softmax(-1)  # over levels and points together
    offsets = module.sampling_offsets(queries).view(2, 4, 2, 2, 3, 2)
    size = torch.tensor([[8, 5], [4, 3]], dtype=torch.float64)  # width, height
    locations = reference_points[:, :, None, :, None] + offsets / size[:, None]
    gathered = naive_ms_deform_attn(value.view(2, -1, 2, 4), SHAPES, locations, weights.view(2, 4, 2, 2, 3))
    expected = module.output_proj(gathered)
    torch.testing.assert_close(attend(module, queries, reference_points, features), expected, rtol=0, atol=1e-12)


def test_starts_in_eight_directions():
    module = DeformableAttention(dim=16, num_heads=8, num_levels=3, num_points=4)
    compass = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    offsets = module.sampling_offsets.bias.view(8, 3, 4, 2)
    for head, (x, y) in enumerate(compass):
        for level in range(3):
            for point in range(4):  # point p looks p steps away
                expected = torch.tensor([x, y]) * (point + 1.0)
                torch.testing.assert_close(offsets[head, level, point], expected, rtol=0, atol=1e-5)


def test_other_parameters_start_as_the_released_ones():
    torch.manual_seed(0)
    module = DeformableAttention(dim=32, num_heads=8, num_levels=3, num_points=4)
    assert not module.sampling_offsets.weight.any()
    assert not module.attention_weights.weight.any() and not module.attention_weights.bias.any()
    for linear in (module.value_proj, module.output_proj):
        bound = (6 / 64) ** 0.5  # Xavier uniform
        assert 0.9 * bound < linear.weight.abs().max() <= bound
        assert not linear.bias.any()


def test_heads_must_divide_the_channels():
    with pytest.raises(ValueError, match=r"HIDDEN_DIM 30 is not a multiple of MODEL.PSF.NUM_HEADS 8"):
        DeformableAttention(dim=30, num_heads=8, num_levels=3, num_points=4)


class TestFeedForward:
    def test_by_its_formula(self):
        torch.manual_seed(0)
        for activation, function in ((None, torch.relu), (nn.GELU(), nn.functional.gelu)):
            block, x = FeedForward(8, 12, activation=activation), torch.randn(3, 8)
            torch.testing.assert_close(block(x), block.fc2(function(block.fc1(x))))

    def test_dropout_after_the_activation_and_at_the_end(self):
        """Hidden channels of 1, each handed on to one output: 4 where both keep it, as each doubles what it keeps."""
        torch.manual_seed(0)
        block = FeedForward(64, 64, dropout=0.5)
        with torch.no_grad():
            block.fc1.weight.zero_()
            block.fc1.bias.fill_(1)
            block.fc2.weight.copy_(torch.eye(64))
            block.fc2.bias.zero_()
            values = block(torch.zeros(100, 64))
            assert block.eval()(torch.zeros(1, 64)).unique().tolist() == [1]
        assert values.unique().tolist() == [0, 4]
        assert 0.22 < (values == 4).float().mean() < 0.28
