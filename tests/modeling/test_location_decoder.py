"""Location-aware queries, and the auxiliary head that tells where they are."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from psf.modeling import LocationDecoder
from psf.modeling.location_decoder import NOT_PROPOSED, QueryProposals, inverse_sigmoid
from psf.modeling.position_encoding import sine_point_encoding, token_centers
from tests.features import random_features

SHAPES = [(4, 6), (2, 3)]
BATCHED = ("tokens", "pos_embed", "padding_mask", "valid_ratios")
DEFAULTS: dict[str, Any] = {
    "dim": 8,
    "num_queries": 5,
    "num_classes": 3,
    "num_heads": 2,
    "num_feature_levels": 2,
    "num_layers": 3,
    "feedforward_dim": 12,
    "num_points": 2,
    "dropout": 0.0,
    "target": "box",
    "box_refinement": False,
    "head_at_test": False,
    "encode_location": False,
}


def build(**changes: Any) -> LocationDecoder:
    """As it starts; in double precision."""
    torch.manual_seed(0)
    return LocationDecoder(**{**DEFAULTS, **changes}).double()


def build_random(**changes: Any) -> LocationDecoder:
    """Parameters from a normal distribution, so that nothing is 0 by chance."""
    decoder = build(**changes)
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.5)
    return decoder


def padded_features():
    return random_features(SHAPES, own_shares=[(1.0, 1.0), (0.5, 0.6)])


def logit_of(x: Tensor) -> Tensor:
    return torch.log(x / (1 - x))


class Recorder:
    """Inputs of each layer's attentions and outputs of each location head, as the decoder runs."""

    def __init__(self, decoder: LocationDecoder):
        self.reference_points: list[Tensor] = []
        self.raw: list[Tensor] = []
        self.calls: Counter[str] = Counter()
        self.self_attention: list[tuple[Tensor, ...]] = []
        self.cross_attention: list[Tensor] = []
        for layer in decoder.layers:
            layer.cross_attention.register_forward_pre_hook(lambda _, inputs: self.reference_points.append(inputs[1]))
            layer.cross_attention.register_forward_pre_hook(lambda _, inputs: self.cross_attention.append(inputs[0]))
            layer.self_attention.register_forward_pre_hook(lambda _, inputs: self.self_attention.append(inputs))
        for name in ("class_embed", "bbox_embed"):
            for i, head in enumerate(getattr(decoder, name)):
                head.register_forward_hook(lambda *_, key=f"{name}.{i}": self.calls.update([key]))
        for head in decoder.bbox_embed:
            head.register_forward_hook(lambda _, __, output: self.raw.append(output))


class TestBoxes:
    def test_without_refinement_relative_to_the_first_references(self):
        decoder = build_random()
        seen = Recorder(decoder)
        located = decoder(random_features(SHAPES))
        first = torch.sigmoid(decoder.reference_points(decoder.query_pos.weight))
        assert len(located.layers) == len(seen.raw) == len(seen.reference_points) == 3
        for layer, raw, reference_points in zip(located.layers, seen.raw, seen.reference_points, strict=True):
            centre = torch.sigmoid(raw[..., :2] + logit_of(first))
            expected = torch.cat((centre, torch.sigmoid(raw[..., 2:])), dim=-1)
            torch.testing.assert_close(layer.locations, expected, rtol=0, atol=1e-12)
            torch.testing.assert_close(reference_points, first[None, :, None].expand(2, 5, 2, 2), rtol=0, atol=1e-12)
            assert layer.class_logits.shape == (2, 5, 3)

    @pytest.mark.parametrize("training", [True, False])
    def test_with_refinement_each_layer_starts_from_the_last(self, training):
        decoder = build_random(box_refinement=True, head_at_test=True).train(training)
        features = padded_features()
        seen = Recorder(decoder)
        located = decoder(features)
        first = torch.sigmoid(decoder.reference_points(decoder.query_pos.weight))
        centre = torch.sigmoid(seen.raw[0][..., :2] + logit_of(first))
        boxes = [torch.cat((centre, torch.sigmoid(seen.raw[0][..., 2:])), dim=-1)]
        for raw in seen.raw[1:]:
            boxes.append(torch.sigmoid(raw + logit_of(boxes[-1])))
        expected = boxes if training else boxes[-1:]
        assert len(located.layers) == len(expected)
        for layer, box in zip(located.layers, expected, strict=True):
            torch.testing.assert_close(layer.locations, box, rtol=0, atol=1e-11)
        # Attention looks around the box that entered the layer: the last but one for the last layer.
        ratios = torch.cat((features.valid_ratios, features.valid_ratios), dim=-1)[:, None]  # (B, 1, L, 4)
        torch.testing.assert_close(seen.reference_points[2], boxes[1][:, :, None] * ratios, rtol=0, atol=1e-11)
        # The first references are points.
        points = (first[None, :, None] * features.valid_ratios[:, None]).expand(2, 5, 2, 2)
        torch.testing.assert_close(seen.reference_points[0], points, rtol=0, atol=1e-12)

    def test_by_hand_at_the_start(self):
        # Last head layer 0: the centre is the reference itself; its biases -2 give sigmoid(-2) = 0.1192 of the image.
        decoder = build()
        nn.init.zeros_(decoder.reference_points.weight)
        with torch.no_grad():
            decoder.reference_points.bias.copy_(torch.tensor([0.0, math.log(3)], dtype=torch.float64))  # 1/2, 3/4
        box = decoder(random_features(SHAPES)).layers[0].locations[0, 0]
        expected = torch.tensor([0.5, 0.75, 1 / (1 + math.e**2), 1 / (1 + math.e**2)], dtype=torch.float64)
        torch.testing.assert_close(box, expected, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("refinement", [False, True])
    def test_saturated_references_stay_finite(self, refinement):
        decoder = build_random(box_refinement=refinement)
        with torch.no_grad():
            decoder.reference_points.bias.copy_(torch.tensor([1e4, -1e4]))
        located = decoder(random_features(SHAPES))
        sum(layer.locations.sum() + layer.class_logits.sum() for layer in located.layers).backward()
        assert located.queries.isfinite().all()
        assert all(layer.locations.isfinite().all() for layer in located.layers)
        assert all(p.grad.isfinite().all() for p in decoder.parameters() if p.grad is not None)

    def test_a_refined_reference_carries_no_gradient(self):
        decoder = build_random(box_refinement=True)
        decoder(random_features(SHAPES)).layers[1].locations.sum().backward()
        assert decoder.bbox_embed[0][-1].weight.grad is None
        assert decoder.bbox_embed[1][-1].weight.grad.abs().sum() > 0
        assert decoder.query_feat.weight.grad.abs().sum() > 0

    def test_box_keeps_the_gradient_of_the_first_references(self):
        decoder = build_random()
        decoder(random_features(SHAPES)).layers[0].locations.sum().backward()
        assert decoder.reference_points.weight.grad.abs().sum() > 0


def test_each_layer_has_its_own_class_head():
    decoder = build_random()
    refined: list[Tensor] = []
    for layer in decoder.layers:
        layer.register_forward_hook(lambda _, __, output: refined.append(output))
    located = decoder(random_features(SHAPES))
    for head, queries, layer in zip(decoder.class_embed, refined, located.layers, strict=True):
        torch.testing.assert_close(layer.class_logits, head(queries), rtol=0, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_boxes_that_are_given_are_the_last_layer_s(training: bool):
    decoder = build_random(give_boxes=True, box_refinement=True).train(training)
    located = decoder(padded_features())
    assert torch.equal(located.boxes_cxcywh_norm, located.layers[-1].locations)
    assert not located.boxes_cxcywh_norm.requires_grad
    assert build_random()(padded_features()).boxes_cxcywh_norm is None


def test_inverse_sigmoid_ends_where_it_would_be_infinite():
    found = inverse_sigmoid(torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64))
    expected = [-math.log(1e5), -math.log(3), math.log(1e5)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=2e-5)


@pytest.mark.parametrize("refinement", [False, True])
def test_mass_centres(refinement):
    decoder = build_random(target="mass_center", box_refinement=refinement)
    seen = Recorder(decoder)
    located = decoder(random_features(SHAPES))
    centre = torch.sigmoid(decoder.reference_points(decoder.query_pos.weight)).expand(2, 5, 2)
    for layer, raw in zip(located.layers, seen.raw, strict=True):
        assert layer.locations.shape == (2, 5, 2)
        corrected = torch.sigmoid(raw + logit_of(centre))
        torch.testing.assert_close(layer.locations, corrected, rtol=0, atol=1e-11)
        centre = corrected if refinement else centre


class TestHeadAtTest:
    def test_not_run_unless_asked(self):
        decoder = build().eval()
        seen = Recorder(decoder)
        assert decoder(random_features(SHAPES)).layers == []
        assert not seen.calls

    def test_last_layer_alone_where_asked(self):
        decoder = build(head_at_test=True).eval()
        seen = Recorder(decoder)
        assert len(decoder(random_features(SHAPES)).layers) == 1
        assert seen.calls == {"class_embed.2": 1, "bbox_embed.2": 1}

    def test_refinement_needs_the_boxes_between(self):
        decoder = build(box_refinement=True).eval()
        seen = Recorder(decoder)
        assert decoder(random_features(SHAPES)).layers == []
        assert seen.calls == {"bbox_embed.0": 1, "bbox_embed.1": 1}

    def test_same_numbers_as_in_training(self):
        decoder, features = build_random(head_at_test=True), padded_features()
        training, test = decoder(features), decoder.eval()(features)
        torch.testing.assert_close(training.queries, test.queries)
        torch.testing.assert_close(training.layers[-1], test.layers[-1])


def test_no_layers_hand_the_queries_on():
    decoder = build(num_layers=0)
    located = decoder(random_features(SHAPES))
    assert torch.equal(located.queries, decoder.query_feat.weight.expand(2, -1, -1))
    assert located.layers == [] and located.query_pos is None
    assert [name for name, _ in decoder.named_parameters()] == ["query_feat.weight"]


@pytest.mark.parametrize("target", ["box", "mass_center"])
@pytest.mark.parametrize("training", [True, False])
def test_encoded_locations(target, training):
    decoder = build_random(target=target, encode_location=True).train(training)
    located = decoder(padded_features())
    assert located.query_pos is not None and not located.query_pos.requires_grad
    centres = located.layers[-1].locations[..., :2]
    torch.testing.assert_close(located.query_pos, sine_point_encoding(centres, 8), rtol=0, atol=1e-12)
    assert build_random(target=target)(padded_features()).query_pos is None


def test_position_goes_to_queries_and_keys_not_to_values():
    decoder = build_random()
    seen, between = Recorder(decoder), []
    decoder.layers[0].self_attention_norm.register_forward_hook(lambda _, __, output: between.append(output))
    decoder(random_features(SHAPES))
    queries, keys, values = seen.self_attention[0]
    content, position = decoder.query_feat.weight, decoder.query_pos.weight
    torch.testing.assert_close(queries[0], content + position)
    torch.testing.assert_close(keys[0], content + position)
    torch.testing.assert_close(values[1], content)
    torch.testing.assert_close(seen.cross_attention[0], between[0] + position)


def test_dropout_in_and_after_attention_and_in_the_feed_forward_block():
    """What each block adds is 1 where it is kept, and twice that in training, as half is dropped."""
    decoder = build_random(dropout=0.5, dim=32, num_queries=40, num_layers=1)
    layer, added, attended = decoder.layers[0], [], []
    norms = (layer.self_attention_norm, layer.cross_attention_norm, layer.feed_forward_norm)
    for linear in (layer.self_attention.out_proj, layer.cross_attention.output_proj, layer.feed_forward.fc2):
        nn.init.zeros_(linear.weight)
        nn.init.ones_(linear.bias)
    for norm in norms:
        norm.register_forward_pre_hook(lambda _, inputs: added.append(inputs[0]))
        norm.register_forward_hook(lambda _, __, output: added.append(output))
    layer.self_attention.register_forward_hook(lambda _, __, output: attended.append(output[0]))
    features = random_features(SHAPES, dim=32)
    for is_training in (True, False):
        added.clear()
        decoder.train(is_training)(features)
        for before, block in ((decoder.query_feat.weight, added[0]), (added[1], added[2]), (added[3], added[4])):
            values = (block - before).detach().round(decimals=9)
            assert values.unique().tolist() == ([0, 2] if is_training else [1])
            assert not is_training or 0.4 < (values == 0).double().mean() < 0.6
    # In self-attention the values are 1 and the weights add up to 1: unless weights are dropped.
    with torch.no_grad():
        layer.self_attention.in_proj_weight[64:].zero_()
        layer.self_attention.in_proj_bias[64:].fill_(1)
        layer.self_attention.out_proj.weight.copy_(torch.eye(32))
        layer.self_attention.out_proj.bias.zero_()
        for is_training in (True, False):
            decoder.train(is_training)(features)
            assert torch.allclose(attended[-1], torch.ones_like(attended[-1])) != is_training


@pytest.mark.parametrize("refinement", [False, True])
def test_queries_may_be_permuted(refinement):
    decoder, features = build_random(box_refinement=refinement), padded_features()
    before, order = decoder(features), torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        for embedding in (decoder.query_feat, decoder.query_pos):
            embedding.weight.copy_(embedding.weight[order])
    after = decoder(features)
    torch.testing.assert_close(after.queries, before.queries[:, order])
    for a, b in zip(after.layers, before.layers, strict=True):
        torch.testing.assert_close(a.class_logits, b.class_logits[:, order])
        torch.testing.assert_close(a.locations, b.locations[:, order])


@pytest.mark.parametrize("refinement", [False, True])
def test_batch_of_two_equals_two_of_one(refinement):
    decoder, features = build_random(box_refinement=refinement), padded_features()
    both = decoder(features)
    for b in range(2):
        alone = decoder(features._replace(**{k: getattr(features, k)[b : b + 1] for k in BATCHED}))
        torch.testing.assert_close(alone.queries[0], both.queries[b])
        torch.testing.assert_close(alone.layers[-1].locations[0], both.layers[-1].locations[b])


def test_unknown_target():
    with pytest.raises(ValueError, match=r'LOCATION_DECODER.TARGET is "centre": expected one of'):
        build(target="centre")


@pytest.mark.parametrize("refinement", [False, True])
def test_places_are_not_rounded_in_mixed_precision(refinement: bool):
    decoder = build_random(box_refinement=refinement).float().train()
    features = padded_features()
    features = features._replace(**{name: getattr(features, name).float() for name in ("tokens", "pos_embed")})
    features = features._replace(valid_ratios=features.valid_ratios.float())
    reference_points: list[Tensor] = []
    for layer in decoder.layers:
        layer.register_forward_pre_hook(lambda module, arguments: reference_points.append(arguments[2]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        located = decoder(features)
    numbers = [x.locations for x in located.layers] + reference_points
    assert {x.dtype for x in numbers} == {torch.float32}
    rounded = [torch.equal(x, x.bfloat16().float()) for x in numbers]
    assert not any(rounded)
    # The first reference does not depend on any token: it is what full precision gives.
    first = decoder.reference_points(decoder.query_pos.weight).sigmoid()
    ratios = features.valid_ratios[:, None]
    torch.testing.assert_close(reference_points[0], first[None, :, None] * ratios, rtol=0, atol=0)


def build_proposals(num_queries: int = 5, num_classes: int = 3) -> QueryProposals:
    torch.manual_seed(0)
    proposals = QueryProposals(dim=8, num_queries=num_queries, num_classes=num_classes).double()
    for parameter in proposals.parameters():
        nn.init.normal_(parameter, std=0.5)
    return proposals


def test_boxes_start_around_each_token():
    """Four tokens a side: at level 0, 4/6 of the width and 4/4 of the height; at level 1 more than the image."""
    proposals = QueryProposals(dim=8, num_queries=2, num_classes=1)  # its box head starts at 0
    boxes = proposals(random_features(SHAPES, dtype=torch.float32)).all_tokens.locations
    assert boxes.shape == (2, 4 * 6 + 2 * 3, 4)
    torch.testing.assert_close(boxes[0, 7], torch.tensor([1.5 / 6, 1.5 / 4, 4 / 6, 1.0]), rtol=0, atol=2e-5)
    torch.testing.assert_close(boxes[0, 24], torch.tensor([0.5 / 3, 0.5 / 2, 1.0, 1.0]), rtol=0, atol=2e-5)


def test_boxes_are_in_units_of_the_unpadded_image():
    """The second image has half of the height and 60 % of the width; its first tokens are where a small image's are."""
    proposals = QueryProposals(dim=8, num_queries=2, num_classes=1).double()
    features = random_features([(4, 10)], own_shares=[(1.0, 1.0), (0.5, 0.6)])
    boxes = proposals(features).all_tokens.locations[1].view(4, 10, 4)
    torch.testing.assert_close(
        boxes[1, 2], torch.tensor([2.5 / 6, 1.5 / 2, 4 / 6, 1.0], dtype=torch.float64), rtol=0, atol=2e-5
    )


def test_the_most_probable_peaks_are_chosen():
    """By a search of our own: the neighbours of a token, of its level, are looked at one by one."""
    proposals, features = build_proposals(num_queries=8), random_features(SHAPES)
    proposed = proposals(features)
    scores = proposed.all_tokens.class_logits.amax(-1)
    for image in range(2):
        peaks = []
        for (h, w), start in zip(SHAPES, (0, 24), strict=True):
            grid = scores[image, start : start + h * w].view(h, w)
            for y in range(h):
                for x in range(w):
                    around = grid[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
                    if grid[y, x] >= around.max():
                        peaks.append((grid[y, x].item(), start + y * w + x))
        best = [row for _, row in sorted(peaks, reverse=True)]
        others = sorted(set(range(30)) - set(best), key=lambda row: -scores[image, row].item())
        expected = proposed.all_tokens.locations[image, [*best, *others][:8]]
        torch.testing.assert_close(proposed.boxes_cxcywh_norm[image], expected, rtol=0, atol=0)


def test_queries_are_the_chosen_tokens():
    proposals, features = build_proposals(), random_features(SHAPES)
    proposed = proposals(features)
    assert proposed.queries.shape == proposed.query_pos.shape == (2, 5, 8)
    tokens = proposals.query_feat(proposals.norm(proposals.projection(features.tokens)))
    for image in range(2):
        boxes = proposed.all_tokens.locations[image]
        rows = [(boxes == box).all(-1).nonzero()[0, 0].item() for box in proposed.boxes_cxcywh_norm[image]]
        torch.testing.assert_close(proposed.queries[image], tokens[image, rows], rtol=0, atol=1e-12)
    torch.testing.assert_close(proposed.query_pos, proposals.encode(proposed.boxes_cxcywh_norm))


def test_positions_tell_places_and_sizes_apart():
    proposals = build_proposals()
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.4, 0.5, 0.2, 0.2], [0.5, 0.5, 0.3, 0.2]]], dtype=torch.float64)
    encoded = proposals.encode(boxes)[0]
    assert (encoded[0] - encoded[1]).abs().max() > 0.01 and (encoded[0] - encoded[2]).abs().max() > 0.01


def test_padding_is_never_proposed():
    proposals, features = build_proposals(num_queries=4), random_features(SHAPES, own_shares=[(1.0, 1.0), (0.5, 0.6)])
    proposed = proposals(features)
    assert (proposed.all_tokens.class_logits[features.padding_mask] == NOT_PROPOSED).all()
    rows = torch.cdist(proposed.boxes_cxcywh_norm[1], proposed.all_tokens.locations[1]).argmin(1)
    assert not features.padding_mask[1, rows].any()
    assert (token_centers(features)[1, rows] < 1).all()


def test_fewer_tokens_than_queries():
    assert build_proposals(num_queries=50)(random_features(SHAPES)).queries.shape == (2, 30, 8)


def test_gradients_reach_tokens_by_queries_and_by_predictions():
    """Boxes of queries carry none: each decoder layer corrects what it was given."""
    proposals, features = build_proposals(), random_features(SHAPES)
    features.tokens.requires_grad_()
    proposed = proposals(features)
    assert not proposed.boxes_cxcywh_norm.requires_grad
    for part in (proposed.queries, proposed.all_tokens.class_logits, proposed.all_tokens.locations):
        [gradient] = torch.autograd.grad(part.square().sum(), features.tokens, retain_graph=True)
        assert gradient.any()


def test_boxes_are_exact_in_half_precision():
    """Under autocast the head is given half-precise tokens, and no more is lost: the same boxes as of those tokens."""
    proposals, features = build_proposals().float(), random_features(SHAPES, dtype=torch.float32)
    tokens: list[torch.Tensor] = []
    proposals.box_head.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0]))
    with torch.autocast("cpu", torch.bfloat16):
        boxes = proposals(features).all_tokens.locations
    centres = token_centers(features)
    sizes = boxes.new_tensor([[4 / 6, 1.0]] * 24 + [[1.0, 1.0]] * 6).expand(2, -1, -1)
    exact = (proposals.box_head(tokens[0].float()) + inverse_sigmoid(torch.cat((centres, sizes), dim=-1))).sigmoid()
    assert boxes.dtype == torch.float32
    torch.testing.assert_close(boxes, exact, rtol=0, atol=1e-6)
