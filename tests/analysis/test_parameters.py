"""Numbers of parameters, against the figures of the paper and of the released model."""

from __future__ import annotations

import torch
from detectron2.modeling import build_model
from torch import nn

from psf.analysis import PartSize, count_parameters, parameter_table
from psf.engine import build_config

# Heads of the released model that its training multiplies by zero, and that psf does not have: per thing mask decoder
# layer a class layer, 256 * 80 + 80, and a box MLP, 2 * (256 * 256 + 256) + 256 * 4 + 4.
DEAD_HEADS = 4 * (20_560 + 132_612)


def test_released_r50():
    with torch.device("meta"):
        model = build_model(build_config("coco/released/psf_R50_24ep.yaml", ["MODEL.DEVICE", "meta"]))
    *parts, total = count_parameters(model)
    assert total == PartSize("total", parameters=50_606_092, with_gradient=50_383_692, frozen_affine=53_120)
    assert total.with_gradient + DEAD_HEADS == 50_996_380  # the paper's 51.0 M
    for kind in range(1, 4):  # no part shares with another
        assert sum(part[kind] for part in parts) == total[kind]
    # The first stage and the stem are frozen: 64*3*49 + 64*(64 + 576 + 256 + 256) + 2 * 256*64 + 2 * 64*(576 + 256).
    backbone = {part.part: part for part in parts}["backbone"]
    assert backbone.parameters - backbone.with_gradient == 9_408 + 73_728 + 139_264


def test_shared_numbers_are_in_the_total_once():
    model = nn.ModuleDict({"a": nn.Linear(3, 5, bias=False), "b": nn.Linear(3, 5, bias=False), "c": nn.ReLU()})
    model["b"].weight = model["a"].weight
    assert count_parameters(model) == [("a", 15, 15, 0), ("b", 15, 15, 0), ("total", 15, 15, 0)]


def test_table():
    table = parameter_table([PartSize("neck", 1_234_567, 7, 0)])
    assert "neck" in table and "1,234,567" in table and " 7 " in table
