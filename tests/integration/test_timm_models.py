"""Models of timm, of many families: maps are timm's own, and every image gets maps of the sides that are announced."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from detectron2.structures import ImageList
from torch import nn

timm = pytest.importorskip("timm")

from psf.backbone import TimmBackbone  # noqa: E402

STRIDES = {"res3": 8, "res4": 16, "res5": 32}
PVT = [f"pvt_v2_b{i}" for i in range(6)]
# Those of any size; those of multiples of the largest stride (cut off or refuse the rest); those of whole windows.
SIZE_DIVISIBILITY = {
    **dict.fromkeys(PVT, 0),
    **dict.fromkeys(
        ["resnet18", "tf_efficientnet_lite0", "mobilenetv3_small_050", "regnety_002", "efficientvit_b0", "resnest14d"],
        0,
    ),
    **dict.fromkeys(["mobilevit_xxs", "fastvit_t8", "hgnetv2_b0"], 0),
    **dict.fromkeys(["convnext_atto", "edgenext_xx_small", "densenet121", "hrnet_w18_small"], 32),
    **dict.fromkeys(["swin_tiny_patch4_window7_224", "swinv2_cr_tiny_ns_224"], 32),
    "maxvit_rmlp_pico_rw_256": 256,
}
HEAVY = {"pvt_v2_b3", "pvt_v2_b4", "pvt_v2_b5"}
MODELS = [pytest.param(name, marks=pytest.mark.slow) if name in HEAVY else name for name in SIZE_DIVISIBILITY]


def backbone(name: str) -> TimmBackbone:
    settings: dict[str, Any] = {"in_channels": 3, "frozen_norm": False, "drop_path": 0.0, "freeze": []}
    return TimmBackbone(name, out_features=list(STRIDES), pretrained=False, **settings).eval()


def shake(model: nn.Module) -> None:
    """No norm is the identity, and no layer scale next to nothing."""
    for name, value in model.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            value.uniform_(0.5, 1.5)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.0)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_maps_are_timms(name: str):
    ours = backbone(name)
    shake(ours)
    assert ours.size_divisibility == SIZE_DIVISIBILITY[name]

    keys = {"strict_img_size": False} if name.startswith("swin") else {}
    theirs = timm.create_model(name, features_only=True, **keys).eval()
    theirs.load_state_dict(ours.model.state_dict())  # strict

    images = ImageList.from_tensors([torch.randn(3, 61, 75), torch.randn(3, 37, 90)], ours.size_divisibility).tensor
    found, shapes = ours(images), ours.output_shape()
    of_stride = dict(zip(theirs.feature_info.reduction(), theirs(images)))
    for key, stride in STRIDES.items():
        expected = of_stride[stride]
        if "swin_tiny" in name:
            expected = expected.movedim(3, 1)  # its channels come last
        assert shapes[key].stride == stride
        assert found[key].shape == (2, shapes[key].channels, *(math.ceil(side / stride) for side in images.shape[2:]))
        torch.testing.assert_close(found[key], expected, rtol=0, atol=0)
        assert found[key].std() > 0
