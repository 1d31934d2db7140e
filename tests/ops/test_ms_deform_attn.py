"""Deformable attention against loops over every sample, and against the released operator's numbers."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from fidelity.stored import StoredTensors
from psf.ops import ms_deform_attn, ms_deform_attn_reference
from tests.naive import naive_ms_deform_attn
from tests.ops.problems import problem


@pytest.fixture(params=["chosen", "bag", "reference"])
def attend(request: pytest.FixtureRequest):
    """What the model calls, what is fast on a CPU, and the specification. For triton see test_triton.py."""
    functions = {"chosen": ms_deform_attn, "bag": partial(ms_deform_attn, implementation="bag")}
    return functions.get(request.param, ms_deform_attn_reference)


@pytest.mark.parametrize("shapes", [[(4, 7)], [(5, 3), (3, 2), (1, 1)], [(1, 6), (6, 1)]])
@pytest.mark.parametrize("spread", [0.5, 1.0, 40.0])
def test_equals_naive_loops(attend, shapes, spread):
    inputs = problem(1, shapes, spread=spread)
    torch.testing.assert_close(attend(*inputs), naive_ms_deform_attn(*inputs), rtol=0, atol=1e-14)


def test_pixel_centres_edges_and_outside_by_hand(attend):
    # One row of two pixels, 1 and 3: their centres are at x = 1/4 and 3/4.
    value = torch.tensor([1.0, 3.0], dtype=torch.float64).view(1, 2, 1, 1)
    x = torch.tensor([0.25, 0.75, 0.5, 0.0, 1.0, -0.25, 1.25, 1e6], dtype=torch.float64)
    locations = torch.stack((x, torch.full_like(x, 0.5)), dim=-1).view(1, 8, 1, 1, 1, 2)
    output = attend(value, [(1, 2)], locations, torch.ones(1, 8, 1, 1, 1, dtype=torch.float64))
    # At the edges half of the sample lies in the zeros outside; half a pixel further nothing is left.
    assert output.flatten().tolist() == [1.0, 3.0, 2.0, 0.5, 1.5, 0.0, 0.0, 0.0]


def test_samples_far_outside_every_level_give_exactly_zero(attend):
    value, shapes, locations, weights = problem(2, [(3, 4), (1, 1)])
    assert not attend(value, shapes, locations + 1e4, weights).any()


@pytest.mark.parametrize("shapes", [[(3, 2), (1, 1)], [(2, 5)]])
def test_gradients(attend, shapes):
    value, _, locations, weights = problem(3, shapes, batch=1, queries=2, heads=2, dim=2, spread=0.8)
    inputs = tuple(x.requires_grad_() for x in (value, locations, weights))
    assert torch.autograd.gradcheck(lambda v, x, a: attend(v, shapes, x, a), inputs, eps=1e-7, atol=1e-6)


def test_float32_is_close_to_float64(attend):
    value, shapes, locations, weights = problem(4, [(9, 5), (3, 4)], queries=20)
    single = attend(value.float(), shapes, locations.float(), weights.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), attend(value, shapes, locations, weights), rtol=0, atol=2e-6)


def test_released_operator(shared: Path, attend):
    numbers = StoredTensors([shared / "golden" / "ops_msda.npz"])
    for name in ("p0", "p1", "p2"):
        value, locations, weights, grad_output = (
            torch.from_numpy(numbers[f"{name}_{x}"]) for x in ("value", "locations", "weights", "grad_output")
        )
        shapes = [(int(h), int(w)) for h, w in numbers[f"{name}_shapes"]]
        inputs = [x.requires_grad_() for x in (value, locations, weights)]
        output = attend(value, shapes, locations, weights)
        gradients = torch.autograd.grad(output, inputs, grad_output)
        kinds = ("output", "grad_value", "grad_locations", "grad_weights")
        for kind, ours in zip(kinds, (output, *gradients), strict=True):
            assert numbers.compare("released", f"{name}_{kind}", ours.detach().numpy(), 1e-11).passed, (name, kind)


def test_levels_that_do_not_fit_are_named():
    value, shapes, locations, weights = problem(5, [(2, 3), (1, 1)])
    with pytest.raises(ValueError, match=r"\[\(2, 3\), \(2, 2\)\] have 10 tokens, value has 7"):
        ms_deform_attn(value, [(2, 3), (2, 2)], locations, weights)
    with pytest.raises(ValueError, match="levels: 2 in spatial_shapes, 1 in sampling_locations, 2 in"):
        ms_deform_attn(value, shapes, locations[:, :, :, :1], weights)
    with pytest.raises(ValueError, match="2 in sampling_locations, 1 in attention_weights"):
        ms_deform_attn(value, shapes, locations, weights[:, :, :, :1])
