"""The bag against the reference: exact in float64, gentle with memory and types, and fast."""

from __future__ import annotations

import time
from functools import partial

import pytest
import torch

from psf.ops import ms_deform_attn, ms_deform_attn_reference
from tests.ops.problems import largest_differences, output_and_gradients, problem

attend = partial(ms_deform_attn, implementation="bag")
SHAPES = [
    [(5, 3), (3, 2), (1, 1)],
    [(1, 6), (6, 1), (2, 2)],
    [(1, 1)],
]


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("spread", [0.5, 1.5, 40.0])
@pytest.mark.parametrize("queries", [1, 7, 600])  # 600 * 8 heads: more than one chunk
def test_equals_the_reference(shapes, spread, queries):
    inputs = problem(1, shapes, queries=queries, heads=8, dim=5, points=3, spread=spread)
    expected = output_and_gradients(ms_deform_attn_reference, inputs)
    assert max(largest_differences(output_and_gradients(attend, inputs), expected)) < 1e-12


def test_kinks_have_the_slope_to_their_right():
    # Points on pixel centres, on edges and one pixel outside, all exact in binary: as grid_sample counts there.
    value, shapes, locations, weights = problem(2, [(4, 8), (2, 2), (1, 4)], queries=200)
    sixteenths = torch.randint(-8, 24, locations.shape, generator=torch.Generator().manual_seed(0))
    inputs = (value, shapes, sixteenths.double() / 16, weights)
    expected = output_and_gradients(ms_deform_attn_reference, inputs)
    assert max(largest_differences(output_and_gradients(attend, inputs), expected)) < 1e-13


@pytest.mark.parametrize("far", [float("inf"), -float("inf")])
def test_infinitely_far_is_outside(far):
    value, shapes, locations, weights = problem(9, [(4, 3), (1, 2)])
    outside = torch.full_like(locations, far)
    assert not attend(value, shapes, outside, weights).any()
    assert attend(value, shapes, outside * 0, weights).isnan().all()  # not a number is no place


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loses_only_the_rounding_of_the_result(dtype):
    value, shapes, locations, weights = problem(3, [(9, 5), (3, 4)], queries=50)
    typed = (value.to(dtype), shapes, locations.float(), weights.to(dtype))
    found = output_and_gradients(attend, typed)
    assert [x.dtype for x in found] == [dtype, dtype, torch.float32, dtype]
    exact = (typed[0].double(), shapes, typed[2].double(), typed[3].double())
    expected = output_and_gradients(ms_deform_attn_reference, exact)
    assert max(largest_differences(found, expected)) < torch.finfo(dtype).eps


@pytest.mark.parametrize(("batch", "queries"), [(0, 4), (2, 0)])
def test_nothing_to_do(batch, queries):
    inputs = problem(4, [(2, 3), (1, 1)], batch=batch, queries=queries)
    output, grad_value, grad_locations, grad_weights = output_and_gradients(attend, inputs)
    assert output.shape == (batch, queries, 6)
    assert not grad_value.any()
    assert (grad_locations.shape, grad_weights.shape) == (inputs[2].shape, inputs[3].shape)


def test_not_a_number_stays_in_its_query():
    value, shapes, locations, weights = problem(5, [(4, 3), (2, 2)], batch=1, queries=4)
    locations[0, 1] = torch.nan
    output = attend(value, shapes, locations, weights)[0]
    assert output[1].isnan().all()
    assert output[[0, 2, 3]].isfinite().all()


def test_leaves_its_inputs_alone():
    value, shapes, locations, weights = problem(8, [(2, 3)], batch=1, queries=1, heads=1, points=1)
    copies = [x.clone() for x in (value, locations, weights)]
    output_and_gradients(attend, (value, shapes, locations, weights))
    assert all(torch.equal(x, y) for x, y in zip((value, locations, weights), copies, strict=True))


def test_same_bits_on_any_number_of_threads():
    inputs = problem(6, [(20, 30), (5, 5)], queries=650, heads=8, dim=4)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = output_and_gradients(attend, inputs)
        torch.set_num_threads(2)
        two = output_and_gradients(attend, inputs)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(x, y) for x, y in zip(one, two, strict=True))


@pytest.mark.parametrize(("training", "bar"), [(False, 0.3), (True, 0.7)])
def test_takes_a_fraction_of_the_time_of_grid_sample(training, bar):
    # The encoder at 256 x 384, 8 heads of 32. Processor time, so that other processes on the machine count little.
    shapes = [(32, 48), (16, 24), (8, 12), (4, 6)]
    value, _, locations, weights = problem(7, shapes, batch=1, queries=2040, heads=8, dim=32, points=4)
    inputs = (value.float(), shapes, locations.float(), weights.float())

    def seconds(function) -> float:
        start = time.process_time()
        if training:
            output_and_gradients(function, inputs)
        else:
            function(*inputs)
        return time.process_time() - start

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        both = [(seconds(attend), seconds(ms_deform_attn_reference)) for _ in range(6)][1:]
    finally:
        torch.set_num_threads(threads)
    ours, plain = (min(times) for times in zip(*both, strict=True))
    assert ours < bar * plain
