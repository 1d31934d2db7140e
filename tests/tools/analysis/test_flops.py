"""Multiply-adds against arithmetic by hand, and of whole models against torch's own counter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from psf.engine import build_config
from psf.ops import ms_deform_attn, ms_deform_attn_reference
from psf.tools.analysis import (
    FlopCount,
    PartSize,
    count_flops,
    count_image_flops,
    count_parameters,
    flop_tables,
    parameter_table,
)
from tests.models import RECIPES, tiny_model


class Calls(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Tensor]):
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


def cost(function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> FlopCount:
    return count_flops(Calls(function), tuple(torch.rand(shape) for shape in shapes))


def test_linear_by_part():
    """15 rows: 15*8*4, then 15*4*2; a ReLU between them is not counted."""
    count = count_flops(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)), (torch.rand(3, 5, 8),))
    assert count.by_part == {"0": {"linear": 480}, "2": {"linear": 120}}
    assert count.total == 600
    assert count.ignored == {"relu": 1}
    assert not count.unsupported


def test_scaled_dot_product_attention():
    """2*3 heads, 5 queries, 7 keys of 4 channels, values of 6: 6 * 5*7 * (4 + 6)."""
    count = cost(F.scaled_dot_product_attention, (2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6))
    assert count.by_operator == {"scaled_dot_product_attention": 2100}


def test_multihead_attention_in_eval_mode():
    """Of 2 images, 5 tokens, 8 channels: 4 projections, 4 * 10*8*8, and 2 products, 2 * 2 * 5*5*8.

    This is where torch has one fused operator for all of it.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    count = count_flops(SelfAttention().eval(), (torch.rand(2, 5, 8),))
    assert count.by_part == {"attention": {"linear": 2560, "scaled_dot_product_attention": 800}}
    assert not count.unsupported
    assert torch.backends.mha.get_fastpath_enabled() == fused


def test_matmul_with_a_batch_in_the_second_factor():
    """2 * 4*3*5."""
    assert cost(torch.matmul, (4, 3), (2, 3, 5)).by_operator == {"matmul": 120}


@pytest.mark.parametrize("form", [ms_deform_attn, ms_deform_attn_reference])
def test_deformable_attention(form: Callable[..., Tensor]):
    """2 images, 3 queries, 2 heads of 4 channels, 2 levels, 5 points: 5 * (2*3*2*2*5) * 4, however it is computed."""
    shapes = [(4, 6), (2, 3)]
    inputs = [(2, 30, 2, 4), (2, 3, 2, 2, 5, 2), (2, 3, 2, 2, 5)]
    count = cost(lambda value, locations, weights: form(value, shapes, locations, weights), *inputs)
    assert count.total == 2400
    assert not count.unsupported


@torch.library.custom_op("psf_tests::nobody_knows", mutates_args=())
def nobody_knows(x: Tensor) -> Tensor:
    return x * 2


def test_unknown_operator_is_reported():
    count = cost(lambda x: nobody_knows(nobody_knows(x)), (2, 3))
    assert count.total == 0
    assert count.unsupported == {"psf_tests::nobody_knows": 2}
    assert "Unsupported (cost unknown, not in the total): psf_tests::nobody_knows 2x" in flop_tables(count)


def test_tables():
    count = FlopCount({"neck": Counter(conv=3_000_000_000, group_norm=1_000_000_000)}, Counter(add=7), Counter())
    tables = flop_tables(count)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables.splitlines() if line.startswith("|")]
    assert ["neck", "4.000", "100.0"] in rows
    assert ["conv", "3.000", "75.0"] in rows
    assert rows.count(["total", "4.000", "100.0"]) == 2
    assert "add 7x" in tables and "not in the total): none" in tables


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_image_against_torchs_counter(recipe: Mapping[str, Any]):
    """torch counts products and convolutions, of which each multiply-add is two; it sees no other operators."""
    model = tiny_model(recipe).eval()
    count = count_image_flops(model, 64, 96)
    assert not count.unsupported
    assert set(count.by_part) <= {name for name, _ in model.named_children()}
    assert {"backbone", "neck", "pixel_encoder", "location_decoder", "thing_decoder", "stuff_decoder"} <= {
        *count.by_part
    }
    products = ("conv", "linear", "matmul", "baddbmm", "scaled_dot_product_attention")

    model.settings = model.settings._replace(panoptic=False, instance=False, semantic=False)
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:  # with gradient, for which torch fuses no layers
        model([{"image": torch.zeros(3, 64, 96, dtype=torch.uint8)}])
    assert sum(count.by_operator[name] for name in products) == counter.get_total_flops() / 2


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
