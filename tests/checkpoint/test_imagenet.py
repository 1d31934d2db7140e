"""ImageNet classifiers of all layouts: the converted backbone gives the maps that the classifier computes."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
import torchvision
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_backbone
from torch import Tensor, nn

from psf.checkpoint import convert_imagenet
from tests.models import tiny_config

timm = pytest.importorskip("timm")

MAPS = ["res2", "res3", "res4", "res5"]
SWIN_STAGES = {"embed_dim": 16, "depths": (2, 2, 4, 2), "num_heads": (1, 2, 4, 8), "window_size": 4}
PVT_TO_ITS_AUTHORS = [
    (r"^patch_embed\.", "patch_embed1."),
    (r"^stages\.(\d)\.downsample\.", lambda m: f"patch_embed{int(m[1]) + 1}."),
    (r"^stages\.(\d)\.blocks\.", lambda m: f"block{int(m[1]) + 1}."),
    (r"^stages\.(\d)\.norm\.", lambda m: f"norm{int(m[1]) + 1}."),
    (r"\.dwconv\.", ".dwconv.dwconv."),
]
SWIN_TO_ITS_AUTHORS = [
    (r"^layers\.(\d)\.downsample\.", lambda m: f"layers.{int(m[1]) - 1}.downsample."),
    (r"^head\.fc\.", "head."),
]


def shaken(model: nn.Module) -> nn.Module:
    """Random parameters and statistics, so that no two are alike, at test."""
    torch.manual_seed(1)
    for name, x in model.state_dict().items():
        if name.endswith("running_var"):
            x.uniform_(0.5, 2.0)
        elif x.is_floating_point():
            x += 0.1 * torch.randn_like(x)
    return model.eval()


def renamed(model: nn.Module, rules: list[tuple[str, str | Callable[[re.Match[str]], str]]]) -> dict[str, Tensor]:
    entries = {}
    for name, x in model.state_dict().items():
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        entries[name] = x
    return entries


def filled_backbone(entries: dict[str, Tensor], lacking: set[str], **keys: object) -> Backbone:
    """The backbone of a config with the converted entries; all are used, and all but `lacking` given."""
    options = {key: value for key, value in keys.items() if "__" in key}
    psf = {key.replace("_OF_", "."): value for key, value in keys.items() if "__" not in key}
    model = nn.Module()
    model.backbone = build_backbone(tiny_config({"IN_FEATURES": MAPS, **psf}, **options), ShapeSpec(channels=3)).eval()
    result = model.load_state_dict(convert_imagenet(entries), strict=False)
    assert result.unexpected_keys == []
    assert set(result.missing_keys) == lacking
    return model.backbone


def assert_maps(backbone: Backbone, size: int, expected: Callable[[Tensor], list[Tensor]]) -> None:
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        maps = backbone(images)
        for name, other in zip(MAPS, expected(images), strict=True):
            assert other.std() > 0.01
            torch.testing.assert_close(maps[name] / other.abs().max(), other / other.abs().max(), rtol=0, atol=1e-5)


def intermediates(model: nn.Module, indices: list[int]) -> Callable[[Tensor], list[Tensor]]:
    return lambda images: model.forward_intermediates(images, indices=indices, intermediates_only=True)


RESNET_KEYS = {
    "MODEL__RESNETS__STEM_OUT_CHANNELS": 64,
    "MODEL__RESNETS__WIDTH_PER_GROUP": 64,
    "MODEL__RESNETS__OUT_FEATURES": MAPS,
}


@pytest.mark.parametrize(("depth", "channels"), [(18, 64), (50, 256)])
def test_torchvision_resnet(depth: int, channels: int) -> None:
    model = shaken(getattr(torchvision.models, f"resnet{depth}")())
    keys = {**RESNET_KEYS, "MODEL__RESNETS__DEPTH": depth, "MODEL__RESNETS__RES2_OUT_CHANNELS": channels}
    backbone = filled_backbone(dict(model.state_dict()), set(), **keys)

    def expected(x: Tensor) -> list[Tensor]:
        x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
        return [x := layer(x) for layer in (model.layer1, model.layer2, model.layer3, model.layer4)]

    assert_maps(backbone, 64, expected)


def test_timm_resnet() -> None:
    model = shaken(timm.create_model("resnet18", pretrained=False))
    keys = {**RESNET_KEYS, "MODEL__RESNETS__DEPTH": 18, "MODEL__RESNETS__RES2_OUT_CHANNELS": 64}
    assert_maps(filled_backbone(dict(model.state_dict()), set(), **keys), 64, intermediates(model, [1, 2, 3, 4]))


@pytest.mark.parametrize("layout", ["timm", "authors"])
def test_pvt(layout: str) -> None:
    model = shaken(timm.create_model("pvt_v2_b0", pretrained=False))
    entries = renamed(model, PVT_TO_ITS_AUTHORS if layout == "authors" else [])
    assert ("block1.0.mlp.dwconv.dwconv.weight" in entries) == (layout == "authors")
    keys = {"MODEL__BACKBONE__NAME": "build_psf_timm_backbone", "TIMM_OF_NAME": "pvt_v2_b0"}
    assert_maps(filled_backbone(entries, set(), **keys), 64, intermediates(model, [0, 1, 2, 3]))


@pytest.mark.parametrize("layout", ["timm", "authors"])
def test_swin(layout: str) -> None:
    """256 pixels: in the last stage 8 x 8 patches, two windows of 4, where timm shifts them as Detectron2 does."""
    model = shaken(timm.create_model("swin_tiny_patch4_window7_224", pretrained=False, img_size=256, **SWIN_STAGES))
    entries = renamed(model, SWIN_TO_ITS_AUTHORS if layout == "authors" else [])
    blocks = [f"layers.{stage}.blocks.{i}.attn" for stage, depth in enumerate((2, 2, 4, 2)) for i in range(depth)]
    lacking = {f"backbone.norm{i}.{x}" for i in range(4) for x in ("weight", "bias")}
    if layout == "authors":  # their files have two tables that timm computes
        entries |= {f"{block}.relative_position_index": position_index(4) for block in blocks}
        entries |= {"layers.0.blocks.1.attn_mask": torch.zeros(256, 16, 16)}
        assert "layers.0.downsample.norm.weight" in entries and "head.weight" in entries
    else:
        lacking |= {f"backbone.{block}.relative_position_index" for block in blocks}
    keys = {f"SWIN_OF_{key.upper()}": value for key, value in SWIN_STAGES.items()}
    backbone = filled_backbone(entries, lacking, MODEL__BACKBONE__NAME="build_psf_swin_backbone", **keys)
    maps = intermediates(model, [0, 1, 2, 3])
    assert_maps(
        backbone,
        256,
        lambda images: [
            nn.functional.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2]).permute(0, 3, 1, 2) for x in maps(images)
        ],
    )


def position_index(window: int) -> Tensor:
    """[i, j]: row of the bias table for query i and key j, patches counted along the rows of a window."""
    row, column = torch.arange(window**2) // window, torch.arange(window**2) % window
    rows, columns = (x[:, None] - x[None] + window - 1 for x in (row, column))
    return rows * (2 * window - 1) + columns


def test_no_known_layout() -> None:
    with pytest.raises(
        ValueError, match=r"nor an ImageNet ResNet of torchvision or timm.* its first entries are stem\.weight"
    ):
        convert_imagenet({"stem.weight": torch.zeros(1)})


def test_an_unknown_entry_is_named() -> None:
    entries = {"layer1.0.conv1.weight": torch.zeros(1), "fc.weight": torch.zeros(1), "surprise": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"\(ResNet of torchvision or timm\): 1 unknown entries: surprise"):
        convert_imagenet(entries)
