"""From backbone maps to levels and mask features."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from psf.modeling import FineLevel, MaskFeatureMap, Neck
from tests.features import random_features

SHAPES = {"res4": ShapeSpec(channels=6, stride=16), "res5": ShapeSpec(channels=10, stride=32)}
TOKEN_SHAPES = [(4, 6), (2, 3)]
FINE, DIM = (8, 12), 64  # of the mask features


def build(num_levels: int, in_features: tuple[str, ...] = ("res4", "res5"), dim: int = 64) -> Neck:
    torch.manual_seed(0)
    return Neck(input_shape=SHAPES, in_features=in_features, dim=dim, num_levels=num_levels)


def backbone_maps(height: int = 6, width: int = 9) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    coarse = torch.randn(2, 10, (height + 1) // 2, (width + 1) // 2)
    return {"res5": coarse, "res4": torch.randn(2, 6, height, width)}


@pytest.mark.parametrize(
    "num_levels, sizes",
    [(2, [(6, 9), (3, 5)]), (3, [(6, 9), (3, 5), (2, 3)]), (5, [(6, 9), (3, 5), (2, 3), (1, 2), (1, 1)])],
)
def test_level_sizes(num_levels, sizes):
    levels = build(num_levels)(backbone_maps())
    assert [tuple(x.shape) for x in levels] == [(2, 64, h, w) for h, w in sizes]


def test_one_by_one_maps():
    levels = build(4)({name: x[:1, :, :1, :1] for name, x in backbone_maps().items()})
    assert [tuple(x.shape) for x in levels] == [(1, 64, 1, 1)] * 4
    assert all(x.isfinite().all() for x in levels)


def test_projections_are_convolution_then_group_norm():
    neck, maps = build(4), backbone_maps()
    for module in neck.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    levels = neck(maps)

    def project(x: torch.Tensor, module: nn.Module, **convolution: int) -> torch.Tensor:
        conv, norm = module
        return F.group_norm(F.conv2d(x, conv.weight, **convolution), 32, norm.weight, norm.bias, eps=1e-5)

    torch.testing.assert_close(levels[0], project(maps["res4"], neck.input_proj[0]))
    torch.testing.assert_close(levels[1], project(maps["res5"], neck.input_proj[1]))
    # The first extra level is made of the backbone's last map, not of its projection; the next of the one before.
    third = project(maps["res5"], neck.extra_input_proj[0], stride=2, padding=1)
    torch.testing.assert_close(levels[2], third)
    torch.testing.assert_close(levels[3], project(third, neck.extra_input_proj[1], stride=2, padding=1))


def test_only_the_named_maps_are_used_in_the_named_order():
    neck = build(2, in_features=("res5",))
    levels = neck(backbone_maps())
    assert [x.shape[-2:] for x in levels] == [(3, 5), (2, 3)]
    assert len(neck.input_proj) == 1


def test_initialisation():
    neck = build(3)
    weights = [module.weight for module in neck.modules() if isinstance(module, nn.Conv2d)]
    assert all(module.bias is None for module in neck.modules() if isinstance(module, nn.Conv2d))
    for weight in weights:  # Xavier uniform: up to sqrt(6 / (fan in + fan out))
        fans = (weight.shape[0] + weight.shape[1]) * weight[0, 0].numel()
        bound = (6 / fans) ** 0.5
        assert 0.9 * bound < weight.abs().max() <= bound


def test_errors_name_the_keys():
    with pytest.raises(ValueError, match=r"NUM_FEATURE_LEVELS is 1, fewer than the 2 maps of MODEL.PSF.IN_FEATURES"):
        build(1)
    with pytest.raises(ValueError, match="HIDDEN_DIM is 40: expected a multiple of 32"):
        build(2, dim=40)
    with pytest.raises(ValueError, match=r"IN_FEATURES contains \['res3'\]; the backbone has \['res4', 'res5'\]"):
        build(2, in_features=("res3", "res5"))
    for order in (("res5", "res4"), ("res4", "res4")):
        with pytest.raises(ValueError, match=r"IN_FEATURES is .*: expected the finest map first, and each once"):
            build(2, in_features=order)


def build_map() -> MaskFeatureMap:
    torch.manual_seed(0)
    return MaskFeatureMap(in_channels=5, dim=DIM).double()


def backbone_map() -> Tensor:
    return torch.randn(2, 5, *FINE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_the_map_by_its_definition():
    """The projected map plus the finest level, projected and upsampled; a ReLU, the 3x3 convolution, a ReLU."""
    one, features, feature = build_map(), random_features(TOKEN_SHAPES, dim=DIM), backbone_map()
    finest = torch.stack([image[:24].T.reshape(DIM, 4, 6) for image in features.tokens])
    projected = (
        torch.einsum("oc,bchw->bohw", one.top_down.weight[:, :, 0, 0], finest) + one.top_down.bias[:, None, None]
    )
    total = one.lateral(feature) + F.interpolate(projected, size=FINE, mode="bilinear")
    expected = one.output(total.clamp(min=0)).clamp(min=0)
    result = one(feature, features, None)
    torch.testing.assert_close(result.mask_features.values, expected, rtol=0, atol=1e-12)
    assert result.mask_features.padding_mask is None and result._replace(mask_features=None) == features
    assert random_features(TOKEN_SHAPES, dim=DIM).finest(1).mask_features is None


def test_padding_of_the_map():
    padding = torch.zeros(2, 16, 24, dtype=torch.bool)
    padding[1, 8:], padding[1, :, 12:] = True, True
    mask = build_map()(backbone_map(), random_features(TOKEN_SHAPES, dim=DIM), padding).mask_features.padding_mask
    assert not mask[0].any() and not mask[1, :4, :6].any() and mask[1].sum() == 96 - 24


def build_fine_level() -> FineLevel:
    torch.manual_seed(0)
    return FineLevel(in_channels=5, dim=32).double()


def test_the_encoded_levels_stay_as_they_are():
    features = random_features(TOKEN_SHAPES, dim=32)
    memory = build_fine_level()(torch.randn(2, 5, 8, 12, dtype=torch.float64), features, None)
    assert memory.spatial_shapes == [(8, 12), *TOKEN_SHAPES] and memory.padding_mask is None
    assert torch.equal(memory.tokens[:, 96:], features.tokens) and torch.equal(
        memory.pos_embed[:, 96:], features.pos_embed
    )
    assert memory.valid_ratios.shape == (2, 3, 2) and (memory.valid_ratios == 1).all()


def test_the_new_level_by_its_definition():
    """Projection of the map, plus the finest encoded level upsampled; then the 3x3 convolution and a ReLU."""
    fine, features, feature = (
        build_fine_level(),
        random_features(TOKEN_SHAPES, dim=32),
        torch.randn(2, 5, *FINE, dtype=torch.float64),
    )
    finest = torch.stack([image[:24].T.reshape(32, 4, 6) for image in features.tokens])
    conv, norm = fine.lateral
    lateral = norm(torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], feature))
    expected = fine.output(lateral + F.interpolate(finest, size=(8, 12), mode="bilinear")).clamp(min=0)
    tokens = fine(feature, features, None).tokens[:, :96]
    torch.testing.assert_close(tokens, expected.permute(0, 2, 3, 1).reshape(2, 96, 32), rtol=0, atol=1e-12)


def test_padding_of_the_fine_level():
    """The second image is 16 of 32 rows and 24 of 48 columns."""
    padding = torch.zeros(2, 32, 48, dtype=torch.bool)
    padding[1, 16:], padding[1, :, 24:] = True, True
    features = random_features(TOKEN_SHAPES, dim=32, own_shares=[(1.0, 1.0), (0.5, 0.5)])
    memory = build_fine_level()(torch.randn(2, 5, 8, 12, dtype=torch.float64), features, padding)
    mask = memory.padding_mask[:, :96].view(2, 8, 12)
    assert not mask[0].any() and mask[1].sum() == 96 - 4 * 6 and not mask[1, :4, :6].any()
    assert torch.equal(memory.padding_mask[:, 96:], features.padding_mask)
    assert memory.valid_ratios[1, 0].tolist() == [0.5, 0.5]


def test_the_fine_level_s_share_of_the_image_comes_first():
    """12 of 32 rows and 20 of 48 columns: at every fourth pixel 3 of 8 and 5 of 12."""
    padding = torch.zeros(2, 32, 48, dtype=torch.bool)
    padding[1, 12:], padding[1, :, 20:] = True, True
    features = random_features(TOKEN_SHAPES, dim=32, own_shares=[(1.0, 1.0), (0.5, 0.5)])
    memory = build_fine_level()(torch.randn(2, 5, 8, 12, dtype=torch.float64), features, padding)
    expected = torch.tensor([5 / 12, 3 / 8], dtype=torch.float64)  # x before y
    torch.testing.assert_close(memory.valid_ratios[1, 0], expected, rtol=0, atol=1e-7)
    assert torch.equal(memory.valid_ratios[:, 1:], features.valid_ratios)


def test_the_fine_level_learns():
    fine, features = build_fine_level(), random_features(TOKEN_SHAPES, dim=32)
    feature = torch.randn(2, 5, 8, 12, dtype=torch.float64, requires_grad=True)
    features.tokens.requires_grad_()
    memory = fine(feature, features, None)
    (memory.tokens[:, :96].square().sum() + memory.pos_embed[:, :96].square().sum()).backward()
    assert feature.grad.any() and features.tokens.grad[:, :24].any()
    assert all(isinstance(p, nn.Parameter) and p.grad.any() for p in fine.parameters())
