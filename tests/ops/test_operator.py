"""psf::ms_deform_attn inside torch: one node for torch.compile, none in exported graphs, right types under autocast."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from psf.modeling.deformable_attention import DeformableAttention
from psf.ops import ms_deform_attn, ms_deform_attn_reference
from psf.structures import FeatureTokens
from tests.ops.problems import output_and_gradients, problem

SHAPES = [(5, 3), (2, 1), (1, 1)]


class Attend(nn.Module):
    """What is compiled and exported."""

    def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return 2 * ms_deform_attn(value, SHAPES, locations, weights, implementation="bag")


def test_registration_is_complete():
    value, _, locations, weights = (x.requires_grad_() if isinstance(x, Tensor) else x for x in problem(1, SHAPES))
    flat = [size for shape in SHAPES for size in shape]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*not a leaf Tensor.*")  # of the check's own copies
        operator = torch.ops.psf.ms_deform_attn.default
        torch.library.opcheck(operator, (value, flat, locations, weights, "bag", "bag"))


@pytest.mark.parametrize("implementation", ["bag", "reference", None])
def test_compiles_without_a_break(implementation):
    attend = partial(ms_deform_attn, implementation=implementation)
    inputs = problem(2, SHAPES)
    torch.compiler.reset()
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    found, expected = (output_and_gradients(function, inputs) for function in (compiled, attend))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_is_one_node_of_a_compiled_graph():
    graphs = []

    def keep(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    value, _, locations, weights = problem(3, SHAPES)
    torch.compiler.reset()
    torch.compile(Attend(), fullgraph=True, backend=keep)(value, locations, weights)
    (graph,) = graphs
    assert sum("ms_deform_attn" in str(node.target) for node in graph.graph.nodes) == 1
    assert not any("grid_sample" in str(node.target) for node in graph.graph.nodes)


def test_exported_and_traced_graphs_need_no_psf():
    value, _, locations, weights = problem(4, SHAPES)
    expected = 2 * ms_deform_attn_reference(value, SHAPES, locations, weights)
    exported = torch.export.export(Attend(), (value, locations, weights))
    assert not any("psf" in str(node.target) for node in exported.graph.nodes)
    assert torch.equal(exported.module()(value, locations, weights), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation, and the comparison of shapes
        traced = torch.jit.trace(Attend(), (value, locations, weights))
    assert "psf::" not in str(traced.inlined_graph)
    assert torch.equal(traced(value, locations, weights), expected)


@pytest.mark.parametrize("implementation", ["bag", "reference"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_value_keeps_its_type_and_exact_locations(implementation, dtype):
    value, shapes, locations, weights = problem(5, [(60, 40)], queries=40)
    value, locations = value.to(dtype), locations.float()
    expected = ms_deform_attn_reference(value.double(), shapes, locations.double(), weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ms_deform_attn(value, shapes, locations, weights.float(), implementation=implementation)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("implementation", ["bag", "reference"])
def test_autocast_changes_nothing_within(implementation):
    value, shapes, locations, weights = problem(6, SHAPES)
    inputs = (value.float(), shapes, locations.float(), weights.float())
    attend = partial(ms_deform_attn, implementation=implementation)
    expected = output_and_gradients(attend, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # around the backward pass too
        found = output_and_gradients(attend, inputs)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("implementation", ["bag", "reference"])
@pytest.mark.parametrize("box", [False, True])
def test_module_computes_locations_in_float32_under_autocast(monkeypatch, implementation, box):
    # In a row of 500 random tokens a sum in bfloat16 may be a whole token off.
    monkeypatch.setenv("PSF_MSDA", implementation)
    generator = torch.Generator().manual_seed(0)
    attention = DeformableAttention(dim=16, num_heads=2, num_levels=1, num_points=2)
    tokens = torch.randn(1, 3 * 500, 16, generator=generator)
    features = FeatureTokens(tokens, torch.zeros_like(tokens), [(3, 500)], None, torch.ones(1, 1, 2))
    reference_points = torch.rand(1, 30, 1, 4 if box else 2, generator=generator) * 0.5 + 0.4
    reference_points[..., 2:] *= 0.01
    reference_points = reference_points.bfloat16()  # as an autocast layer would give them
    queries = torch.randn(1, 30, 16, generator=generator)
    exact = attention(queries, reference_points.float(), attention.values(features), features.spatial_shapes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attention(queries, reference_points, attention.values(features), features.spatial_shapes)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=0, atol=0.05 * exact.abs().max().item())
