"""Projection of backbone maps, and the levels beyond them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from torch import nn

from psf.modeling import Neck

SHAPES = {"res4": ShapeSpec(channels=6, stride=16), "res5": ShapeSpec(channels=10, stride=32)}


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
