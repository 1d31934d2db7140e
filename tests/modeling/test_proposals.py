"""Queries made of the encoder's best tokens."""

from __future__ import annotations

import torch
from torch import nn

from psf.modeling.location_decoder import NOT_PROPOSED, QueryProposals, inverse_sigmoid
from psf.modeling.position_encoding import token_centers
from tests.features import random_features

SHAPES = [(4, 6), (2, 3)]


def build(num_queries: int = 5, num_classes: int = 3) -> QueryProposals:
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
    proposals, features = build(num_queries=8), random_features(SHAPES)
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
    proposals, features = build(), random_features(SHAPES)
    proposed = proposals(features)
    assert proposed.queries.shape == proposed.query_pos.shape == (2, 5, 8)
    tokens = proposals.query_feat(proposals.norm(proposals.projection(features.tokens)))
    for image in range(2):
        boxes = proposed.all_tokens.locations[image]
        rows = [(boxes == box).all(-1).nonzero()[0, 0].item() for box in proposed.boxes_cxcywh_norm[image]]
        torch.testing.assert_close(proposed.queries[image], tokens[image, rows], rtol=0, atol=1e-12)
    torch.testing.assert_close(proposed.query_pos, proposals.encode(proposed.boxes_cxcywh_norm))


def test_positions_tell_places_and_sizes_apart():
    proposals = build()
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.4, 0.5, 0.2, 0.2], [0.5, 0.5, 0.3, 0.2]]], dtype=torch.float64)
    encoded = proposals.encode(boxes)[0]
    assert (encoded[0] - encoded[1]).abs().max() > 0.01 and (encoded[0] - encoded[2]).abs().max() > 0.01


def test_padding_is_never_proposed():
    proposals, features = build(num_queries=4), random_features(SHAPES, own_shares=[(1.0, 1.0), (0.5, 0.6)])
    proposed = proposals(features)
    assert (proposed.all_tokens.class_logits[features.padding_mask] == NOT_PROPOSED).all()
    rows = torch.cdist(proposed.boxes_cxcywh_norm[1], proposed.all_tokens.locations[1]).argmin(1)
    assert not features.padding_mask[1, rows].any()
    assert (token_centers(features)[1, rows] < 1).all()


def test_fewer_tokens_than_queries():
    assert build(num_queries=50)(random_features(SHAPES)).queries.shape == (2, 30, 8)


def test_gradients_reach_tokens_by_queries_and_by_predictions():
    """Boxes of queries carry none: each decoder layer corrects what it was given."""
    proposals, features = build(), random_features(SHAPES)
    features.tokens.requires_grad_()
    proposed = proposals(features)
    assert not proposed.boxes_cxcywh_norm.requires_grad
    for part in (proposed.queries, proposed.all_tokens.class_logits, proposed.all_tokens.locations):
        [gradient] = torch.autograd.grad(part.square().sum(), features.tokens, retain_graph=True)
        assert gradient.any()


def test_boxes_are_exact_in_half_precision():
    """Under autocast the head is given half-precise tokens, and no more is lost: the same boxes as of those tokens."""
    proposals, features = build().float(), random_features(SHAPES, dtype=torch.float32)
    tokens: list[torch.Tensor] = []
    proposals.box_head.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0]))
    with torch.autocast("cpu", torch.bfloat16):
        boxes = proposals(features).all_tokens.locations
    centres = token_centers(features)
    sizes = boxes.new_tensor([[4 / 6, 1.0]] * 24 + [[1.0, 1.0]] * 6).expand(2, -1, -1)
    exact = (proposals.box_head(tokens[0].float()) + inverse_sigmoid(torch.cat((centres, sizes), dim=-1))).sigmoid()
    assert boxes.dtype == torch.float32
    torch.testing.assert_close(boxes, exact, rtol=0, atol=1e-6)
