"""Maps become tokens; tokens attend to one another; padding stays out of it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psf.modeling import DeformablePixelEncoder
from psf.modeling.position_encoding import sine_position_encoding
from tests.naive import naive_ms_deform_attn


def build(num_layers: int, *, levels: int = 2, dim: int = 8, dropout: float = 0.0) -> DeformablePixelEncoder:
    """In double precision, its parameters random."""
    encoder = DeformablePixelEncoder(
        dim=dim,
        num_heads=2,
        num_feature_levels=levels,
        num_layers=num_layers,
        feedforward_dim=12,
        num_points=2,
        dropout=dropout,
    ).double()
    torch.manual_seed(0)  # the same level embedding, whatever the depth
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.5)
    return encoder


def random_levels(sizes: list[tuple[int, int]], batch: int = 2, dim: int = 8) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(batch, dim, h, w, dtype=torch.float64) for h, w in sizes]


def padding_of(padded_size: tuple[int, int], *own_sizes: tuple[int, int]) -> Tensor:
    mask = torch.ones(len(own_sizes), *padded_size, dtype=torch.bool)
    for image, (h, w) in zip(mask, own_sizes, strict=True):
        image[:h, :w] = False
    return mask


# An image of 8x8 pixels in the batch, levels at strides 2 and 4; the second image is 5 high and 3 wide.
SIZES, MASK = [(4, 4), (2, 2)], padding_of((8, 8), (8, 8), (5, 3))
# The first image is 6 high and 10 wide, the second 4 high and 6 wide.
WIDE, WIDE_MASK = [(3, 5), (2, 3)], padding_of((6, 10), (6, 10), (4, 6))


def test_tokens_are_the_maps_row_by_row():
    levels = random_levels([(2, 3), (1, 2)])
    features = build(0)(levels, None)
    assert features.spatial_shapes == [(2, 3), (1, 2)] and features.padding_mask is None
    assert features.tokens.shape == (2, 8, 8)
    for y in range(2):
        for x in range(3):
            torch.testing.assert_close(features.tokens[:, 3 * y + x], levels[0][:, :, y, x], rtol=0, atol=0)
    torch.testing.assert_close(features.tokens[:, 7], levels[1][:, :, 0, 1], rtol=0, atol=0)
    assert torch.equal(features.valid_ratios, torch.ones(2, 2, 2, dtype=torch.float64))


def test_position_is_sine_plus_level_embedding():
    encoder = build(0)
    features = encoder(random_levels(SIZES), MASK)
    small = torch.ones(1, 4, 4, dtype=torch.bool)
    small[:, :3, :2] = False  # the second image at stride 2, see below
    sine = sine_position_encoding(small, 8).double()[0].flatten(1).T
    torch.testing.assert_close(features.pos_embed[1, :16], sine + encoder.level_embed[0])
    free = sine_position_encoding(torch.zeros(1, 2, 2, dtype=torch.bool), 8).double()[0].flatten(1).T
    torch.testing.assert_close(features.pos_embed[0, 16:], free + encoder.level_embed[1])


def test_padding_mask_and_valid_ratios_by_hand():
    features = build(0)(random_levels(SIZES), MASK)
    assert features.padding_mask is not None
    assert not features.padding_mask[0].any()
    # The nearest pixels of the 4x4 level are rows and columns 0, 2, 4, 6: of 5 rows three are own, of 3 columns two.
    own = [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert (~features.padding_mask[1, :16]).int().view(4, 4).tolist() == own
    # Of the 2x2 level: rows 0 and 4 are own, of columns 0 and 4 one.
    assert (~features.padding_mask[1, 16:]).int().tolist() == [1, 0, 1, 0]
    # x before y
    assert features.valid_ratios.tolist() == [[[1, 1], [1, 1]], [[0.5, 0.75], [0.5, 1.0]]]


def test_a_pixel_in_a_large_batch_still_has_a_token_of_its_own():
    levels = random_levels([(8, 8), (2, 2)], batch=1)
    features = build(1)(levels, padding_of((64, 64), (1, 1)))
    assert (~features.padding_mask[0]).nonzero().flatten().tolist() == [0, 64]
    assert features.valid_ratios.tolist() == [[[1 / 8, 1 / 8], [1 / 2, 1 / 2]]]
    assert features.tokens.isfinite().all()


def test_padding_positions_and_references_where_height_is_not_width():
    encoder = build(1)
    seen: list[Tensor] = []
    encoder.layers[0].attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    features = encoder(random_levels(WIDE), WIDE_MASK)
    # The nearest pixels are rows 0, 2, 4 and columns 0, 2, ..., 8: two rows and three columns are own.
    own = [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]]
    assert (~features.padding_mask[1, :15]).int().view(3, 5).tolist() == own
    # Of the 2x3 level: rows 0 and 3, columns 0, 3 and 6.
    assert (~features.padding_mask[1, 15:]).int().view(2, 3).tolist() == [[1, 1, 0], [1, 1, 0]]
    ratios = torch.tensor([[3 / 5, 2 / 3], [2 / 3, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(features.valid_ratios[1], ratios, rtol=0, atol=1e-7)
    # Token 8 of the 3x5 level is row 1, column 3; token 17 is row 0, column 2 of the 2x3 level.
    torch.testing.assert_close(seen[0][0, 8], torch.tensor([[3.5 / 5, 1.5 / 3]] * 2, dtype=torch.float64))
    torch.testing.assert_close(seen[0][0, 17], torch.tensor([[2.5 / 3, 0.5 / 2]] * 2, dtype=torch.float64))
    # Token 7, row 1, column 2, of the second image: 2.5 / 3 and 1.5 / 2 of its own size.
    own_place = torch.tensor([2.5 / 3, 1.5 / 2], dtype=torch.float64)
    torch.testing.assert_close(seen[0][1, 7], own_place * ratios, rtol=0, atol=1e-7)
    for image, level_sizes in enumerate(([(3, 5), (2, 3)], [(2, 3), (2, 2)])):
        start = 0
        for level, ((h, w), (own_h, own_w)) in enumerate(zip(WIDE, level_sizes, strict=True)):
            grid = features.pos_embed[image, start : start + h * w].view(h, w, 8)[:own_h, :own_w]
            free = sine_position_encoding(torch.zeros(1, own_h, own_w, dtype=torch.bool), 8).double()[0]
            torch.testing.assert_close(grid, free.permute(1, 2, 0) + encoder.level_embed[level])
            start += h * w


def test_references_are_pixel_centres_by_hand():
    encoder = build(1)
    seen: list[Tensor] = []
    encoder.layers[0].attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    encoder(random_levels(SIZES), MASK)
    (reference_points,) = seen
    assert reference_points.shape == (2, 20, 2, 2)
    # Unpadded: token 6 of the 4x4 level is row 1, column 2, the same place on each level.
    assert reference_points[0, 6].tolist() == [[2.5 / 4, 1.5 / 4], [2.5 / 4, 1.5 / 4]]
    # Second image, valid ratios (1/2, 3/4) and (1/2, 1): row 1, column 1 is (1.5 / 2, 1.5 / 3) of its own size.
    assert reference_points[1, 5].tolist() == [[0.75 * 0.5, 0.5 * 0.75], [0.75 * 0.5, 0.5 * 1.0]]
    # Token 18, level 2x2, row 1, column 0: (0.5 / 1, 1.5 / 2) of its own size.
    assert reference_points[1, 18].tolist() == [[0.5 * 0.5, 0.75 * 0.75], [0.5 * 0.5, 0.75 * 1.0]]


def test_references_are_not_rounded_in_mixed_precision():
    encoder = build(1).float()
    seen: list[Tensor] = []
    encoder.layers[0].attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    levels = random_levels([(4, 100), (2, 50)])
    mask = padding_of((8, 200), (8, 200), (8, 150))
    encoder([x.float() for x in levels], mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encoder([x.bfloat16() for x in levels], mask)
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=0)


@pytest.mark.parametrize(("sizes", "mask"), [(SIZES, MASK), (WIDE, WIDE_MASK)], ids=["square", "wide and high"])
def test_a_layer_by_its_formula(sizes: list[tuple[int, int]], mask: Tensor):
    encoder = build(1)
    features, before = encoder(random_levels(sizes), mask), build(0)(random_levels(sizes), mask)
    layer, tokens = encoder.layers[0], before.tokens
    attention = layer.attention
    placed = tokens + before.pos_embed  # (B, T, 8): offsets and weights come from it, values from the tokens alone
    places = [(level, x, y) for level, (h, w) in enumerate(sizes) for y in range(h) for x in range(w)]
    number = len(places)
    values = attention.value_proj(tokens).masked_fill(before.padding_mask[..., None], 0).view(2, number, 2, 4)
    offsets = attention.sampling_offsets(placed).view(2, number, 2, 2, 2, 2)
    weights = attention.attention_weights(placed).view(2, number, 2, 4).softmax(-1).view(2, number, 2, 2, 2)
    widths = torch.tensor([[w, h] for h, w in sizes], dtype=torch.float64)  # x before y
    locations = torch.empty(2, number, 2, 2, 2, 2, dtype=torch.float64)
    for b in range(2):
        for token, (level, x, y) in enumerate(places):
            own = before.valid_ratios[b, level] * widths[level]
            centre = torch.tensor([x + 0.5, y + 0.5], dtype=torch.float64) / own
            for sampled in range(2):
                reference = centre * before.valid_ratios[b, sampled]
                locations[b, token, :, sampled] = reference + offsets[b, token, :, sampled] / widths[sampled]
    attended = attention.output_proj(naive_ms_deform_attn(values, sizes, locations, weights))
    tokens = layer.attention_norm(tokens + attended)  # after the residual
    hidden = F.relu(layer.feed_forward.fc1(tokens))
    expected = layer.feed_forward_norm(tokens + layer.feed_forward.fc2(hidden))
    torch.testing.assert_close(features.tokens, expected, rtol=0, atol=1e-11)
    assert layer.attention_norm.eps == layer.feed_forward_norm.eps == 1e-5


def test_batch_of_two_equals_two_of_one():
    encoder, levels = build(3), random_levels(SIZES)
    both = encoder(levels, MASK)
    for b in range(2):
        one = encoder([x[b : b + 1] for x in levels], MASK[b : b + 1])
        torch.testing.assert_close(both.tokens[b], one.tokens[0], rtol=0, atol=1e-12)
        assert torch.equal(both.pos_embed[b], one.pos_embed[0])
    plain = encoder([x[:1] for x in levels], None)  # a mask that masks nothing
    torch.testing.assert_close(both.tokens[0], plain.tokens[0], rtol=0, atol=1e-12)


def test_what_is_in_the_padding_does_not_matter():
    encoder, levels = build(3), random_levels(SIZES)
    before = encoder(levels, MASK)
    changed = []
    for level, (h, w) in zip(levels, SIZES, strict=True):
        padding = F.interpolate(MASK[:, None].double(), size=(h, w)).bool().expand_as(level)
        changed.append(torch.where(padding, 100 * torch.randn_like(level), level))
    after = encoder(changed, MASK)
    own = ~before.padding_mask
    torch.testing.assert_close(after.tokens[own], before.tokens[own], rtol=0, atol=1e-11)
    assert not torch.allclose(after.tokens[~own], before.tokens[~own])


def test_dropout_after_attention_and_in_the_feed_forward_block():
    """Each block's result is 1 where it is kept, and twice that in training, as half is dropped."""
    encoder, levels = build(1, dropout=0.5, dim=16), random_levels([(6, 8), (3, 4)], dim=16)
    layer = encoder.layers[0]
    for linear in (layer.attention.output_proj, layer.feed_forward.fc2):
        nn.init.zeros_(linear.weight)
        nn.init.ones_(linear.bias)
    added: list[Tensor] = []
    layer.attention_norm.register_forward_pre_hook(lambda _, inputs: added.append(inputs[0]))
    layer.attention_norm.register_forward_hook(lambda _, __, output: added.append(-output))
    layer.feed_forward_norm.register_forward_pre_hook(lambda _, inputs: added.append(inputs[0]))
    for is_training in (True, False):
        added.clear()
        encoder.train(is_training)(levels, None)
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in levels], dim=1)
        for block in (added[0] - tokens, added[1] + added[2]):
            values = block.detach().round(decimals=9)
            assert values.unique().tolist() == ([0, 2] if is_training else [1])
            assert not is_training or 0.4 < (values == 0).double().mean() < 0.6


def test_dim_must_be_a_multiple_of_four():
    with pytest.raises(ValueError, match="HIDDEN_DIM is 6: the sine encoding needs a multiple of 4"):
        build(1, dim=6)


@pytest.mark.parametrize("at_once", [1, 7, 20])
def test_in_parts_at_test(at_once: int, monkeypatch: pytest.MonkeyPatch):
    encoder, levels = build(3), random_levels(SIZES)
    whole = encoder(levels, MASK).tokens
    monkeypatch.setattr("psf.modeling.pixel_encoder.TOKENS_AT_ONCE", at_once)
    with torch.no_grad():
        parts = encoder(levels, MASK).tokens
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)
