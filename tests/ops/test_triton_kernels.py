"""The Triton kernels against the reference in float64: in Triton's interpreter on any machine, and on a GPU.

The interpreter has to be chosen before triton is imported: so a process of its own runs this file a second time.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import torch

from psf.ops import ms_deform_attn, ms_deform_attn_reference
from tests.ops.problems import Problem, largest_differences, output_and_gradients, problem

pytest.importorskip("triton")
IN_INTERPRETER = os.environ.get("TRITON_INTERPRET") == "1"
attend = partial(ms_deform_attn, implementation="triton")


@pytest.fixture(params=["cpu"] if IN_INTERPRETER else [pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """What the kernels run on in this process."""
    return request.param


@pytest.mark.skipif(IN_INTERPRETER, reason="the other process")
def test_in_the_interpreter(run_python, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("PSF_MSDA", "triton")  # what the tests of the other file call
    released = f"{Path(__file__).with_name('test_ms_deform_attn.py')}::test_released_operator[chosen]"
    finished = run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu", __file__, released)
    assert finished.returncode == 0, finished.stdout
    assert " passed" in finished.stdout


def check(inputs: Problem, device: str, tolerance: float, dtype: torch.dtype = torch.float64) -> None:
    """The output and all gradients, against the reference of the same numbers in float64."""
    value, shapes, locations, weights = inputs
    precision = torch.promote_types(dtype, torch.float32)
    typed = (value.to(device, dtype), shapes, locations.to(device, precision), weights.to(device, dtype))
    exact = (typed[0].cpu().double(), shapes, typed[2].cpu().double(), typed[3].cpu().double())
    found = output_and_gradients(attend, typed)
    assert [x.dtype for x in found] == [dtype, dtype, precision, dtype]
    expected = output_and_gradients(ms_deform_attn_reference, exact)
    assert max(largest_differences(found, expected)) < tolerance


@pytest.mark.parametrize("shapes", [[(4, 7)], [(5, 3), (3, 2), (1, 1)], [(1, 6), (6, 1), (2, 2), (1, 1)]])
@pytest.mark.parametrize("spread", [0.8, 40.0])
def test_equals_the_reference(device, shapes, spread):
    check(problem(1, shapes, heads=2, batch=1, dim=4, spread=spread), device, 1e-12)


@pytest.mark.parametrize(("dim", "heads", "points"), [(1, 1, 1), (5, 3, 3), (33, 1, 2)])
def test_sizes_that_are_no_power_of_two(device, dim, heads, points):
    check(problem(2, [(3, 4), (2, 3)], queries=37, heads=heads, dim=dim, points=points), device, 1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_types(device, dtype, tolerance):
    check(problem(3, [(9, 5), (3, 4)], batch=1, heads=2, queries=20, dim=8), device, tolerance, dtype)


def test_kinks_have_the_slope_to_their_right(device):
    value, shapes, locations, weights = problem(4, [(4, 8), (2, 2), (1, 4)], batch=1, heads=2, queries=60)
    sixteenths = torch.randint(-8, 24, locations.shape, generator=torch.Generator().manual_seed(0))
    check((value, shapes, sixteenths.double() / 16, weights), device, 1e-12)


def test_weights_of_another_type(device):
    value, shapes, locations, weights = (
        x.to(device) if isinstance(x, torch.Tensor) else x for x in problem(5, [(3, 4)])
    )
    output = attend(value.bfloat16(), shapes, locations.bfloat16(), weights.float())
    assert output.dtype == torch.bfloat16


@pytest.mark.parametrize(("batch", "queries"), [(0, 4), (2, 0)])
def test_nothing_to_do(device, batch, queries):
    value, shapes, locations, weights = problem(6, [(2, 3), (1, 1)], batch=batch, queries=queries)
    inputs = (value.to(device), shapes, locations.to(device), weights.to(device))
    output, grad_value, *_ = output_and_gradients(attend, inputs)
    assert output.shape == (batch, queries, 6)
    assert not grad_value.any()


def test_deterministic_gradients_come_from_the_bag(device):
    value, shapes, locations, weights = problem(7, [(5, 6), (2, 3)], queries=50)
    inputs = (value.float().to(device), shapes, locations.float().to(device), weights.float().to(device))
    first, second, bag = (
        output_and_gradients(partial(ms_deform_attn, implementation=name, deterministic=True), inputs)
        for name in ("triton", "triton", "bag")
    )
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(first[1:], bag[1:], strict=True))


@pytest.mark.gpu
def test_bag_and_reference_on_a_gpu():
    value, shapes, locations, weights = problem(8, [(5, 6), (2, 3), (1, 1)], queries=600, heads=8)
    expected = output_and_gradients(ms_deform_attn_reference, (value, shapes, locations, weights))
    inputs = (value.cuda(), shapes, locations.cuda(), weights.cuda())
    for name in ("bag", "reference"):
        found = output_and_gradients(partial(ms_deform_attn, implementation=name), inputs)
        assert max(largest_differences(found, expected)) < 1e-12


@pytest.mark.skipif(IN_INTERPRETER, reason="compiles")
@pytest.mark.parametrize("kind", ["bf16", "fp32"])
def test_kernels_compile_for_a_gpu_that_is_not_here(kind):
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from psf.ops import triton_kernels

    constants = {"LEVELS": 1, "POINTS": 1, "DIM": 32, "ROWS": 32, "COLUMNS": 32, "COMPUTE": tl.float32}
    for kernel in (triton_kernels._forward_kernel, triton_kernels._backward_kernel):
        signature = {}
        for name in kernel.arg_names:
            single = name in ("locations_ptr", "grad_locations_ptr", "grad_value_ptr")
            pointer = "*i32" if name == "levels_ptr" else f"*{'fp32' if single else kind}"
            signature[name] = "constexpr" if name in constants else pointer if name.endswith("_ptr") else "i32"
        places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
        source = ASTSource(kernel, signature, constexprs=places)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": True})
        assert compiled.asm["ptx"]
