"""One finer level before the encoder's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from psf.modeling import FineLevel
from tests.features import random_features

SHAPES = [(4, 6), (2, 3)]


def build() -> FineLevel:
    torch.manual_seed(0)
    return FineLevel(in_channels=5, dim=32).double()


def test_the_encoded_levels_stay_as_they_are():
    features = random_features(SHAPES, dim=32)
    memory = build()(torch.randn(2, 5, 8, 12, dtype=torch.float64), features, None)
    assert memory.spatial_shapes == [(8, 12), *SHAPES] and memory.padding_mask is None
    assert torch.equal(memory.tokens[:, 96:], features.tokens) and torch.equal(
        memory.pos_embed[:, 96:], features.pos_embed
    )
    assert memory.valid_ratios.shape == (2, 3, 2) and (memory.valid_ratios == 1).all()


def test_the_new_level_by_its_definition():
    """Projection of the map, plus the finest encoded level upsampled; then the 3x3 convolution and a ReLU."""
    fine, features, feature = build(), random_features(SHAPES, dim=32), torch.randn(2, 5, 8, 12, dtype=torch.float64)
    finest = torch.stack([image[:24].T.reshape(32, 4, 6) for image in features.tokens])
    conv, norm = fine.lateral
    lateral = norm(torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], feature))
    expected = fine.output(lateral + F.interpolate(finest, size=(8, 12), mode="bilinear")).clamp(min=0)
    tokens = fine(feature, features, None).tokens[:, :96]
    torch.testing.assert_close(tokens, expected.permute(0, 2, 3, 1).reshape(2, 96, 32), rtol=0, atol=1e-12)


def test_padding():
    """The second image is 16 of 32 rows and 24 of 48 columns."""
    padding = torch.zeros(2, 32, 48, dtype=torch.bool)
    padding[1, 16:], padding[1, :, 24:] = True, True
    features = random_features(SHAPES, dim=32, own_shares=[(1.0, 1.0), (0.5, 0.5)])
    memory = build()(torch.randn(2, 5, 8, 12, dtype=torch.float64), features, padding)
    mask = memory.padding_mask[:, :96].view(2, 8, 12)
    assert not mask[0].any() and mask[1].sum() == 96 - 4 * 6 and not mask[1, :4, :6].any()
    assert torch.equal(memory.padding_mask[:, 96:], features.padding_mask)
    assert memory.valid_ratios[1, 0].tolist() == [0.5, 0.5]


def test_everything_learns():
    fine, features = build(), random_features(SHAPES, dim=32)
    feature = torch.randn(2, 5, 8, 12, dtype=torch.float64, requires_grad=True)
    features.tokens.requires_grad_()
    memory = fine(feature, features, None)
    (memory.tokens[:, :96].square().sum() + memory.pos_embed[:, :96].square().sum()).backward()
    assert feature.grad.any() and features.tokens.grad[:, :24].any()
    assert all(isinstance(p, nn.Parameter) and p.grad.any() for p in fine.parameters())
