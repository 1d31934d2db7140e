"""Learning rates, weight decay and clipping by the keys under SOLVER."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.solver import build_optimizer as detectron2_build_optimizer
from torch import nn

from psf import add_psf_config
from psf.engine import build_optimizer


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
    with pytest.raises(ValueError, match=r"SOLVER.OPTIMIZER is 'LION'"):
        build_optimizer(solver_cfg(OPTIMIZER="LION"), Model())


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


@pytest.mark.parametrize("clip_type", ["norm", "full_model"])
def test_full_model_clipping(clip_type: str):
    # The norm of (3, 4) is 5.
    assert steps(solver_cfg(**CLIPPED, CLIP_GRADIENTS__CLIP_TYPE=clip_type)) == pytest.approx([0.6, 0.8], abs=1e-4)


def test_detectron2_clipping():
    assert steps(solver_cfg(**CLIPPED, CLIP_GRADIENTS__CLIP_TYPE="value")) == [1, 1]
    unclipped = {**CLIPPED, "CLIP_GRADIENTS__ENABLED": False}
    assert steps(solver_cfg(**unclipped, CLIP_GRADIENTS__CLIP_TYPE="norm")) == [3, 4]
    # The same keys in Detectron2's own function: each parameter by itself, and no error.
    cfg = solver_cfg(**CLIPPED, CLIP_GRADIENTS__CLIP_TYPE="norm")
    assert steps(cfg, detectron2_build_optimizer) == pytest.approx([1, 1], abs=1e-4)


def test_optimizer_state_survives():
    model = nn.Linear(2, 2)
    cfg = solver_cfg(**{**CLIPPED, "OPTIMIZER": "ADAMW"}, CLIP_GRADIENTS__CLIP_TYPE="norm")
    optimizer = build_optimizer(cfg, model)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    other = build_optimizer(cfg, model)
    other.load_state_dict(optimizer.state_dict())
    assert [state["step"].item() for state in other.state.values()] == [1, 1]
