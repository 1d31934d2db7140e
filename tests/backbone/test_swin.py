"""Swin as a Detectron2 backbone: Detectron2's own numbers, with psf's names, freezing and drop path."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torchvision.ops import StochasticDepth

from psf.backbone import SwinBackbone
from tests.models import gradients, make_input, tiny_config, tiny_model

MAPS = ["res3", "res4", "res5"]
STAGES: dict[str, Any] = {"embed_dim": 8, "depths": [2, 2, 3, 1], "num_heads": [1, 2, 2, 4], "window_size": 3}


def backbone(**changes: Any) -> SwinBackbone:
    settings = {**STAGES, "drop_path": 0.0, "out_features": MAPS, "in_channels": 3, "freeze": [], **changes}
    return SwinBackbone(**settings)


def drop_path_rates(model: SwinBackbone) -> list[float]:
    modules = [block.drop_path for layer in model.layers for block in layer.blocks]
    return [module.p if isinstance(module, StochasticDepth) else 0.0 for module in modules]


class TestMaps:
    @pytest.mark.parametrize("size", [(96, 96), (75, 101), (33, 40)])
    def test_numbers_are_those_of_detectron2(self, size: tuple[int, int]):
        """Also where patches, windows and patch merging have to pad."""
        from detectron2.modeling.backbone.swin import SwinTransformer

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.meshgrid")
            theirs = SwinTransformer(**STAGES, drop_path_rate=0.0, out_indices=(1, 2, 3)).eval()
        for parameter in theirs.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        ours = backbone().eval()
        ours.load_state_dict(theirs.state_dict())  # strict
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            expected, maps = theirs(images), ours(images)
        for name, other in zip(MAPS, ("p1", "p2", "p3"), strict=True):
            torch.testing.assert_close(maps[name], expected[other], rtol=1e-5, atol=1e-5)

    def test_what_is_announced_comes(self):
        model = backbone(in_channels=5, out_features=["res4", "res2"]).double().eval()
        shapes = model.output_shape()
        assert {name: (shape.channels, shape.stride) for name, shape in shapes.items()} == {
            "res4": (32, 16),
            "res2": (8, 4),
        }
        with torch.no_grad():
            maps = model(torch.zeros(2, 5, 50, 70, dtype=torch.float64))
        assert {name: tuple(x.shape) for name, x in maps.items()} == {"res4": (2, 32, 4, 5), "res2": (2, 8, 13, 18)}
        assert model.size_divisibility == 0

    def test_only_what_the_maps_need_is_built(self):
        names = {name.partition(".")[0] for name, _ in backbone().named_parameters()}
        assert names == {"patch_embed", "layers", "norm1", "norm2", "norm3"}
        names = {".".join(name.split(".")[:2]) for name, _ in backbone(out_features=["res3"]).named_parameters()}
        assert names == {
            *("patch_embed.proj", "patch_embed.norm", "layers.0", "layers.1", "norm1.weight", "norm1.bias")
        }

    def test_meta_device(self):
        with torch.device("meta"):
            model = backbone(drop_path=0.3)
        assert all(x.is_meta for x in model.state_dict().values())

    def test_without_timm(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setitem(sys.modules, "timm", None)
        model = backbone(drop_path=0.3).train()
        assert drop_path_rates(model)[-1] == pytest.approx(0.3)
        assert all(x.isfinite().all() for x in model(torch.zeros(1, 3, 32, 32)).values())


class TestDropPath:
    def test_grows_over_all_blocks(self):
        """8 blocks: 0.7 in steps of a seventh; also where the last stage is not built."""
        rates = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
        assert drop_path_rates(backbone(drop_path=0.7)) == pytest.approx(rates)
        assert drop_path_rates(backbone(drop_path=0.7, out_features=["res4"])) == pytest.approx(rates[:7])

    def test_drops_in_training_alone(self):
        model, images = backbone(drop_path=0.9), torch.randn(1, 3, 32, 32)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        torch.manual_seed(0)
        assert len({model.train()(images)["res5"].sum().item() for _ in range(8)}) > 1
        assert len({model.eval()(images)["res5"].sum().item() for _ in range(2)}) == 1


class TestFrozen:
    def test_names_of_modules(self):
        model = backbone(freeze=["patch_embed"])
        frozen = {name: p.numel() for name, p in model.named_parameters() if not p.requires_grad}
        assert all(name.startswith("patch_embed.") for name in frozen)
        assert sum(frozen.values()) == 3 * 4 * 4 * 8 + 8 + 2 * 8  # patches of 4 x 4, bias, norm

    def test_a_name_of_nothing(self):
        with pytest.raises(ValueError, match=r'SWIN\.FREEZE contains "stem": expected the name of a parameter of Swin'):
            backbone(freeze=["stem"])


class TestErrors:
    def test_detectron2_without_swin(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setitem(sys.modules, "detectron2.modeling.backbone.swin", None)
        with pytest.raises(ValueError, match="this Detectron2 has no Swin Transformer"):
            backbone()

    def test_map_that_it_lacks(self):
        with pytest.raises(ValueError, match=r"IN_FEATURES contains \['res6'\]"):
            backbone(out_features=["res3", "res6"])

    @pytest.mark.parametrize("heads", [[1, 2, 2], [1, 2, 3, 4]])
    def test_heads_that_do_not_fit(self, heads: list[int]):
        with pytest.raises(ValueError, match=r"SWIN\.NUM_HEADS is .* channels \[8, 16, 32, 64\]"):
            backbone(num_heads=heads)

    def test_rate_of_drop_path(self):
        with pytest.raises(ValueError, match=r"SWIN\.DROP_PATH is 1\.0"):
            backbone(drop_path=1.0)


class TestInTheModel:
    name: dict[str, str] = {"MODEL__BACKBONE__NAME": "build_psf_swin_backbone"}  # noqa: RUF012
    keys: dict[str, Any] = {f"SWIN.{key.upper()}": value for key, value in STAGES.items()}  # noqa: RUF012

    def test_built_by_its_name(self):
        """Every key arrives."""
        keys = {**self.keys, "SWIN.DROP_PATH": 0.7, "SWIN.FREEZE": ["norm1"], "IN_FEATURES": ["res3", "res4"]}
        model = build_backbone(tiny_config(keys, **self.name), ShapeSpec(channels=3))
        assert isinstance(model, SwinBackbone)
        assert list(model.output_shape()) == ["res3", "res4"]
        assert drop_path_rates(model)[-1] == pytest.approx(0.6)
        assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["norm1.weight", "norm1.bias"]
        table = model.layers[1].blocks[0].attn.relative_position_bias_table
        assert table.shape == ((2 * 3 - 1) ** 2, 2)

    @pytest.mark.parametrize("channels_last", [False, True])
    def test_learns(self, channels_last: bool):
        losses, found = gradients(
            tiny_model({**self.keys, "SWIN.DROP_PATH": 0.0, "CHANNELS_LAST": channels_last}, **self.name),
            [make_input(64, 96, things=2, stuff=2), make_input(50, 72, things=1, stuff=3, seed=1)],
        )
        assert all(value.isfinite() for value in losses.values())
        assert [name for name, gradient in found.items() if gradient is None or not gradient.any()] == []
