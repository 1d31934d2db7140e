"""A narrow model of the released recipe, and a checkpoint of it under the released names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from psf.checkpoint.imagenet import RESNET
from psf.checkpoint.name_table import rename
from psf.checkpoint.released import HEAD, NECK
from tests.models import RELEASED, tiny_config, tiny_model

# What mmcv's runner and mmdetection's hooks store beside the weights.
META: dict[str, Any] = {
    "epoch": 24,
    "iter": 177432,
    "mmcv_version": "1.3.4",
    "time": "Tue Mar 15 12:00:00 2022",
    "mmdet_version": "2.12.0+",
    "config": "model = dict(type='PanSeg')\n",
    "CLASSES": ("person", "bicycle"),
    "hook_msgs": {},
}
OPTIMIZER: dict[str, Any] = {
    "state": {0: {"step": 7, "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)}},
    "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "params": [0]}],
}

# The weights that the released model keeps in one piece: name -> psf's two.
IN_ONE_PIECE = {old: new for old, new in HEAD.items() if isinstance(new, tuple)}


@pytest.fixture
def cfg() -> CfgNode:
    return tiny_config(RELEASED)


@pytest.fixture
def model() -> nn.Module:
    return tiny_model(RELEASED)


@pytest.fixture
def released(model: nn.Module, tmp_path: Path) -> Path:
    """The model's weights in a file as the released training wrote them, with what a converter has to drop."""
    path = tmp_path / "released.pth"
    torch.save(released_content(model), path)
    return path


def released_content(model: nn.Module) -> dict[str, Any]:
    """What the released training wrote of a model with a ResNet, in mmcv's layout."""
    entries = dict(model.state_dict())
    pieces: dict[str, Tensor] = {}
    for old, names in IN_ONE_PIECE.items():
        pieces[f"bbox_head.{old}"] = torch.cat([entries.pop(name) for name in names], dim=1)
    back = {
        **{f"backbone.{new}": f"backbone.{old}" for old, new in RESNET.items()},
        **{new: old for old, new in NECK.items()},
        **{new: f"bbox_head.{old}" for old, new in HEAD.items() if isinstance(new, str)},
    }
    state_dict = {**rename(entries, back, [], source="the model"), **pieces}
    state_dict["backbone.bn1.num_batches_tracked"] = torch.tensor(7)
    state_dict["bbox_head.reg_branches2.0.0.weight"] = torch.zeros(3)
    return {"meta": META, "state_dict": state_dict, "optimizer": OPTIMIZER}
