"""Autocast changes no bit of what decides: where to sample, which token becomes a query, which class and box it has.

The costs, the assignment and the losses are tested in tests/losses.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from psf.modeling import deformable_attention
from psf.modeling.deformable_attention import DeformableAttention
from psf.modeling.location_decoder import LocationDecoder, QueryProposals
from psf.modeling.mask_decoder import QueryClassifier, box_prior
from psf.structures import DecodedMasks, FeatureTokens

SHAPES = [(8, 12), (4, 6)]
DIM, HEADS = 32, 4


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def features() -> FeatureTokens:
    """Two images, the second padded."""
    tokens = sum(h * w for h, w in SHAPES)
    padding_mask = torch.zeros(2, tokens, dtype=torch.bool)
    padding_mask[1, -6:] = True
    ratios = torch.tensor([[[1.0, 1.0]] * 2, [[1.0, 0.75]] * 2])
    return FeatureTokens(torch.randn(2, tokens, DIM), torch.randn(2, tokens, DIM), SHAPES, padding_mask, ratios)


def shake(module: torch.nn.Module) -> Any:
    """Outputs that start at 0 would be equal in any precision."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module


def assert_same(function: Any) -> None:
    plain: list[Tensor] = function()
    with torch.autocast("cpu", torch.bfloat16):
        found: list[Tensor] = function()
    for x, expected in zip(found, plain, strict=True):
        assert x.dtype == expected.dtype and torch.equal(x, expected)


@pytest.mark.parametrize("dims", [2, 4])
def test_sampling_locations(dims: int, monkeypatch: pytest.MonkeyPatch):
    locations: list[Tensor] = []
    attend = deformable_attention.ms_deform_attn

    def record(value, spatial_shapes, sampling_locations, attention_weights, **options):
        locations.append(sampling_locations)
        return attend(value, spatial_shapes, sampling_locations, attention_weights, **options)

    monkeypatch.setattr(deformable_attention, "ms_deform_attn", record)
    attention = shake(DeformableAttention(dim=DIM, num_heads=HEADS, num_levels=2, num_points=4))
    given, queries, points = features(), 9 * torch.randn(2, 5, DIM), torch.rand(2, 5, 2, dims)

    def sample() -> list[Tensor]:
        attention(queries, points, attention.values(given), SHAPES)
        return [locations.pop()]

    assert_same(sample)


def location_decoder(**settings: Any) -> LocationDecoder:
    defaults = {
        "dim": DIM,
        "num_queries": 7,
        "num_classes": 3,
        "num_heads": HEADS,
        "num_feature_levels": 2,
        "num_layers": 2,
        "feedforward_dim": 16,
        "num_points": 4,
        "dropout": 0.0,
        "target": "box",
        "box_refinement": True,
        "head_at_test": True,
        "encode_location": True,
    }
    decoder: LocationDecoder = shake(LocationDecoder(**{**defaults, **settings}))
    return decoder


def test_boxes_and_classes_of_the_auxiliary_head():
    """Of equal queries, which come from a layer norm: in float32, also under autocast."""
    decoder, queries, points = location_decoder(), torch.randn(2, 7, DIM), torch.rand(2, 7, 4)
    assert_same(lambda: [decoder._locate(1, queries, points)])
    decoder.layers = torch.nn.ModuleList([_Same(), _Same()])
    assert_same(lambda: [x for layer in decoder(features_of(0)).layers for x in layer])


class _Same(torch.nn.Module):
    """A layer that leaves the queries as they are."""

    def forward(self, queries: Tensor, *_: Any) -> Tensor:
        return queries


def features_of(seed: int) -> FeatureTokens:
    torch.manual_seed(seed)
    return features()


def test_choice_of_proposals():
    """Equal logits in half precision would choose other tokens."""
    proposals = shake(QueryProposals(dim=DIM, num_queries=9, num_classes=3))
    given = features()

    def propose() -> list[Tensor]:
        proposed = proposals(given)
        return [proposed.boxes_cxcywh_norm, *proposed.all_tokens]

    assert_same(propose)


def test_classes_of_refined_queries():
    classifier = shake(QueryClassifier(DIM, 2, 3))
    decoded = DecodedMasks([], [torch.randn(2, 7, DIM), torch.randn(2, 7, DIM)])
    assert_same(lambda: classifier(decoded))
    assert_same(lambda: classifier(DecodedMasks([], decoded.refined_queries[:1]), -1))


def test_box_prior():
    centers, boxes = torch.rand(2, 50, 2), torch.rand(2, 7, 4)
    assert_same(lambda: [box_prior(centers, boxes)])
    # 1 minus the squared distance in half sides
    offset = (centers[:, None] - boxes[:, :, None, :2]) / (boxes[:, :, None, 2:] / 2).clamp(min=0.002)
    assert torch.equal(box_prior(centers, boxes), (1 - (offset * offset).sum(-1)).clamp(min=-3.0))
