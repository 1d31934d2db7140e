"""Learning rates, weight decay and clipping by the keys under SOLVER."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.solver import build_optimizer as detectron2_build_optimizer
from torch import nn

from psf import add_psf_config
from psf.engine import build_optimizer
from psf.engine.optimizer import block_positions, layer_decay_factors, optimizer_state_for, parameter_names
from tests.models import tiny_config


def solver_cfg(**keys: Any) -> CfgNode:
    cfg = get_cfg()
    add_psf_config(cfg)
    cfg.SOLVER.BASE_LR = 1.0
    cfg.SOLVER.WEIGHT_DECAY = 0.5
    for key, value in keys.items():
        cfg.merge_from_list([f"SOLVER.{key.replace('__', '.')}", value])
    return cfg


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 1), "sampling_offsets": nn.Linear(1, 1)})
        self.encoder = nn.ModuleDict({"sampling_offsets": nn.Linear(2, 2), "linear": nn.Linear(2, 2)})
        self.my_backbone = nn.Linear(1, 1)
        self.reference_points = nn.Linear(2, 2)
        self.norm = nn.LayerNorm(4)
        self.frozen = nn.Linear(5, 5).requires_grad_(False)


def settings(optimizer: torch.optim.Optimizer, model: nn.Module, key: str) -> dict[str, float]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[one]: group[key] for group in optimizer.param_groups for one in group["params"]}


def test_learning_rates():
    model = Model()
    cfg = solver_cfg(BACKBONE_MULTIPLIER=0.1, SAMPLING_MULTIPLIER=0.2, BIAS_LR_FACTOR=2.0)
    rates = settings(build_optimizer(cfg, model), model, "lr")
    expected = {
        "backbone.conv": 0.1,
        "backbone.sampling_offsets": 0.02,
        "encoder.sampling_offsets": 0.2,
        "encoder.linear": 1.0,
        "my_backbone": 1.0,
        "reference_points": 0.2,
        "norm": 1.0,
    }
    assert rates == pytest.approx(
        {f"{name}.weight": rate for name, rate in expected.items()}
        | {f"{name}.bias": 2 * rate for name, rate in expected.items()}
    )
    assert not any(name.startswith("frozen") for name in rates)


def test_weight_decay():
    model = Model()
    cfg = solver_cfg(WEIGHT_DECAY_NORM=0.25, WEIGHT_DECAY_BIAS=0.125)
    decays = settings(build_optimizer(cfg, model), model, "weight_decay")
    assert (decays["norm.weight"], decays["norm.bias"]) == (0.25, 0.125)
    assert (decays["encoder.linear.weight"], decays["encoder.linear.bias"]) == (0.5, 0.125)


def test_choice_of_optimizer():
    assert isinstance(build_optimizer(solver_cfg(OPTIMIZER="ADAMW"), Model()), torch.optim.AdamW)
    sgd = build_optimizer(solver_cfg(OPTIMIZER="SGD", MOMENTUM=0.7), Model())
    assert isinstance(sgd, torch.optim.SGD) and sgd.defaults["momentum"] == 0.7
    for nesterov in (True, False):
        sgd = build_optimizer(solver_cfg(OPTIMIZER="SGD", MOMENTUM=0.7, NESTEROV=nesterov), Model())
        assert sgd.defaults["nesterov"] == nesterov
    with pytest.raises(ValueError, match=r"SOLVER.OPTIMIZER is 'LION'"):
        build_optimizer(solver_cfg(OPTIMIZER="LION"), Model())


@pytest.mark.parametrize(("optimizer", "rate", "count"), [("SGD", 1.5e-4, 1), ("SGD", 0.01, 0), ("ADAMW", 1.5e-4, 0)])
def test_sgd_with_the_learning_rate_of_adamw(optimizer: str, rate: float, count: int, caplog: pytest.LogCaptureFixture):
    for _ in range(2):
        build_optimizer(solver_cfg(OPTIMIZER=optimizer, BASE_LR=rate), Model())
    messages = [one.getMessage() for one in caplog.records if "learning rate for ADAMW" in one.getMessage()]
    assert len(messages) == count and all("SOLVER.BASE_LR is 0.00015" in one for one in messages)


CLIPPED = {"CLIP_GRADIENTS__ENABLED": True, "CLIP_GRADIENTS__CLIP_VALUE": 1.0, "OPTIMIZER": "SGD", "MOMENTUM": 0.0,
           "WEIGHT_DECAY": 0.0}  # fmt: skip


def steps(cfg: CfgNode, build: Any = build_optimizer) -> list[float]:
    """By how much two weights with the gradients 3 and 4 move at learning rate 1."""
    model = nn.ParameterList([torch.zeros(1), torch.zeros(1)])
    optimizer = build(cfg, model)
    for parameter, gradient in zip(model, (3.0, 4.0)):
        parameter.grad = torch.tensor([gradient])
    optimizer.step()
    return [-parameter.item() for parameter in model]


@pytest.mark.parametrize(
    ("clip_type", "expected"),
    [
        ("full_model", [0.6, 0.8]),  # the norm of (3, 4) is 5
        ("norm", [1, 1]),  # each parameter by itself
        ("value", [1, 1]),
    ],
)
def test_clipping(clip_type: str, expected: list[float]):
    cfg = solver_cfg(**CLIPPED, CLIP_GRADIENTS__CLIP_TYPE=clip_type)
    assert steps(cfg) == pytest.approx(expected, abs=1e-4)
    if clip_type != "full_model":
        assert steps(cfg) == steps(cfg, detectron2_build_optimizer)


@pytest.mark.parametrize(("norm_type", "norm"), [(1.0, 7), (2.0, 5), (float("inf"), 4)])
def test_norm_of_the_full_model(norm_type: float, norm: float):
    cfg = solver_cfg(**CLIPPED, CLIP_GRADIENTS__CLIP_TYPE="full_model", CLIP_GRADIENTS__NORM_TYPE=norm_type)
    assert steps(cfg) == pytest.approx([3 / norm, 4 / norm], abs=1e-4)


def test_norm_and_value_differ_within_a_parameter():
    """The gradient (3, 4) of one parameter: its norm is 5."""
    for clip_type, expected in (("norm", [0.6, 0.8]), ("value", [1, 1])):
        model = nn.ParameterList([torch.zeros(2)])
        optimizer = build_optimizer(solver_cfg(**CLIPPED, CLIP_GRADIENTS__CLIP_TYPE=clip_type), model)
        model[0].grad = torch.tensor([3.0, 4.0])
        optimizer.step()
        assert (-model[0]).tolist() == pytest.approx(expected, abs=1e-4)


def test_no_clipping():
    assert steps(solver_cfg(**{**CLIPPED, "CLIP_GRADIENTS__ENABLED": False})) == [3, 4]
    with pytest.raises(
        ValueError, match=r"SOLVER\.CLIP_GRADIENTS\.CLIP_TYPE is \"global\": expected one of .*full_model"
    ):
        build_optimizer(solver_cfg(**CLIPPED, CLIP_GRADIENTS__CLIP_TYPE="global"), Model())


def test_optimizer_state_survives():
    model = nn.Linear(2, 2)
    cfg = solver_cfg(**{**CLIPPED, "OPTIMIZER": "ADAMW"}, CLIP_GRADIENTS__CLIP_TYPE="full_model")
    optimizer = build_optimizer(cfg, model)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    other = build_optimizer(cfg, model)
    other.load_state_dict(optimizer.state_dict())
    assert [state["step"].item() for state in other.state.values()] == [1, 1]


TIMM = {"MODEL__BACKBONE__NAME": "build_psf_timm_backbone"}
SWIN = {"SWIN.EMBED_DIM": 8, "SWIN.DEPTHS": [2, 2, 3, 1], "SWIN.NUM_HEADS": [1, 2, 2, 4], "SWIN.WINDOW_SIZE": 3}


def backbone(psf: dict[str, Any], **keys: Any) -> nn.Module:
    return build_backbone(tiny_config(psf, **keys), ShapeSpec(channels=3))


def blocks_of(model: nn.Module) -> dict[int, set[str]]:
    """Position -> names of the parameters there."""
    found: dict[int, set[str]] = {}
    for name, position in block_positions(model).items():
        found.setdefault(position, set()).add(name)
    return found


def prefixes(names: set[str], words: int) -> set[str]:
    return {".".join(name.split(".")[:words]) for name in names}


def test_detectron2_resnet():
    """ResNet-50: 3 + 4 + 6 + 3 blocks after the stem."""
    found = blocks_of(backbone({}))
    assert prefixes(found[0], 1) == {"stem"}
    blocks = [f"res{stage}.{i}" for stage, depth in ((2, 3), (3, 4), (4, 6), (5, 3)) for i in range(depth)]
    assert [prefixes(found[k], 2) for k in range(1, 17)] == [{block} for block in blocks]
    assert len(found) == 17


def test_swin():
    """Patch merging counts with the block before it, and so do the norms of the maps, which come last."""
    found = blocks_of(backbone(SWIN, MODEL__BACKBONE__NAME="build_psf_swin_backbone"))
    assert prefixes(found[0], 1) == {"patch_embed"}
    assert prefixes(found[1], 4) == {"layers.0.blocks.0"}
    assert prefixes(found[2], 3) == {"layers.0.blocks", "layers.0.downsample"}
    assert prefixes(found[8], 1) == {"layers", "norm1", "norm2", "norm3"}
    assert len(found) == 9


@pytest.mark.parametrize(
    ("name", "num_blocks", "stem"),
    [
        ("pvt_v2_b0", 8, "patch_embed"),
        ("tf_efficientnet_lite0", 16, "conv_stem"),
        ("convnext_atto", 12, "stem_0"),
        ("resnet18", 8, "conv1"),
        ("regnety_002", 13, "stem"),
        ("swin_tiny_patch4_window7_224", 12, "patch_embed"),
    ],
)
def test_timm(name: str, num_blocks: int, stem: str):
    pytest.importorskip("timm")
    with torch.device("meta"):
        positions = block_positions(backbone({"TIMM.NAME": name, "TIMM.FROZEN_NORM": False}, **TIMM))
    assert max(positions.values()) == num_blocks
    assert {position for key, position in positions.items() if key.startswith(f"model.{stem}.")} == {0}
    assert list(positions.values()) == sorted(positions.values())


class TinyBackbone(nn.Module):
    """Outside and inside a block, by the name of the class."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(1, 1)
        self.first, self.second = TinyBlock(), TinyBlock()
        self.norm = nn.LayerNorm(1)


class TinyBlock(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(1, 1), nn.LayerNorm(1))


def test_factors():
    """Two blocks: the stem has 0.5 ** 3, the first block 0.5 ** 2, the second and what follows 0.5."""
    factors = layer_decay_factors(TinyBackbone(), 0.5)
    assert {name: value for name, value in factors.items() if name.endswith("weight")} == {
        "stem.weight": 0.125,
        "first.0.weight": 0.25,
        "first.1.weight": 0.25,
        "second.0.weight": 0.5,
        "second.1.weight": 0.5,
        "norm.weight": 0.5,
    }


def solver(**keys: Any) -> CfgNode:
    cfg = tiny_config()
    for key, value in {"BASE_LR": 1.0, "BACKBONE_MULTIPLIER": 0.1, **keys}.items():
        cfg.SOLVER[key] = value
    return cfg


class LayeredModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = TinyBackbone()
        self.encoder = TinyBackbone()
        self.backbone.first.requires_grad_(False)


def rates(cfg: CfgNode, model: nn.Module) -> dict[str, float]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = build_optimizer(cfg, model).param_groups
    return {names[parameter]: group["lr"] for group in groups for parameter in group["params"]}


def test_learning_rates_of_blocks():
    """Times BACKBONE_MULTIPLIER, in the backbone alone; frozen parameters have none."""
    found = rates(solver(BACKBONE_LAYER_DECAY=0.5), LayeredModel())
    assert {name: rate for name, rate in found.items() if name.endswith(".bias")} == pytest.approx(
        {
            "backbone.stem.bias": 0.0125,
            "backbone.second.0.bias": 0.05,
            "backbone.second.1.bias": 0.05,
            "backbone.norm.bias": 0.05,
            **{f"encoder.{part}.bias": 1.0 for part in ("stem", "first.0", "first.1", "second.0", "second.1", "norm")},
        }
    )


def test_off_by_default():
    found = rates(solver(), LayeredModel())
    assert {rate for name, rate in found.items() if name.startswith("backbone.")} == {0.1}


@pytest.mark.parametrize("decay", [0.0, 1.5, -0.5])
def test_not_a_factor(decay: float):
    with pytest.raises(ValueError, match=r"SOLVER\.BACKBONE_LAYER_DECAY is .*: expected a factor"):
        build_optimizer(solver(BACKBONE_LAYER_DECAY=decay), LayeredModel())


def test_no_blocks():
    model = LayeredModel()
    model.backbone = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"BACKBONE_LAYER_DECAY is 0\.9, but no known blocks in Linear"):
        build_optimizer(solver(BACKBONE_LAYER_DECAY=0.9), model)


class TestStateOfACheckpoint:
    def trained(self, model: nn.Module, **keys: Any) -> torch.optim.Optimizer:
        """After one step, in which the gradient of each parameter was its own number."""
        optimizer = build_optimizer(solver_cfg(**keys), model)
        for number, parameter in enumerate(model.parameters(), 1):
            parameter.grad = torch.full_like(parameter, number) if parameter.requires_grad else None
        optimizer.step()
        return optimizer

    def test_moments_follow_the_names_and_options_the_config(self):
        model = Model()
        old = self.trained(model, BACKBONE_MULTIPLIER=0.1)
        names = parameter_names(old, model)
        new = build_optimizer(solver_cfg(BACKBONE_MULTIPLIER=1.0, BIAS_LR_FACTOR=2.0, WEIGHT_DECAY_NORM=0.0), model)
        assert parameter_names(new, model) != names  # the groups differ
        before = settings(new, model, "lr")
        new.load_state_dict(optimizer_state_for(new, model, old.state_dict(), names))
        for number, (name, parameter) in enumerate(model.named_parameters(), 1):
            if parameter.requires_grad:  # AdamW's first moment after one step is 0.1 times the gradient
                assert torch.allclose(new.state[parameter]["exp_avg"], torch.tensor(0.1 * number)), name
        assert settings(new, model, "lr") == before

    @pytest.mark.parametrize(("kind", "other"), [("ADAMW", "SGD"), ("SGD", "ADAMW")])
    def test_another_kind_is_refused(self, kind: str, other: str):
        model = Model()
        old, new = self.trained(model, OPTIMIZER=kind), build_optimizer(solver_cfg(OPTIMIZER=other), model)
        with pytest.raises(ValueError, match=rf"SOLVER\.OPTIMIZER is '{other}', .* trained with '{kind}'"):
            optimizer_state_for(new, model, old.state_dict(), parameter_names(old, model))

    def test_without_names_the_groups_must_agree(self):
        model = Model()
        old, same = self.trained(model), build_optimizer(solver_cfg(BASE_LR=0.1), model)
        assert optimizer_state_for(same, model, old.state_dict(), None)["state"] == old.state_dict()["state"]
        other = build_optimizer(solver_cfg(BIAS_LR_FACTOR=2.0), model)
        with pytest.raises(ValueError, match="cannot resume: the optimizer of the checkpoint has other parameters"):
            optimizer_state_for(other, model, old.state_dict(), None)
