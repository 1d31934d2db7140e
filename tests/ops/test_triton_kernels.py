"""The Triton kernels against the reference in float64: in Triton's interpreter on any machine, and on a GPU.

The interpreter has to be chosen before triton is imported: so a process of its own runs this file a second time.
"""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from psf.ops import dispatch, measurement, ms_deform_attn, ms_deform_attn_reference
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


@pytest.mark.skipif(not IN_INTERPRETER, reason="a GPU has a test of its own")
@pytest.mark.parametrize(("dtype", "weights_dtype"), [(torch.float32, torch.float32), (torch.bfloat16, torch.float32)])
def test_measurement_accepts_the_kernels(monkeypatch, dtype, weights_dtype):
    monkeypatch.setattr("psf.ops.measurement.ROUNDS", 1)
    small = measurement.Problem(dtype, weights_dtype, 2, 4, 2, 1, 64, 64, True)
    found = measurement.measure(small, torch.device("cpu"), dispatch.IMPLEMENTATIONS)
    assert set(found.milliseconds) == set(dispatch.IMPLEMENTATIONS) and not found.refused


@pytest.mark.skipif(not IN_INTERPRETER, reason="a GPU has a test of its own")
def test_a_wrong_kernel_is_not_chosen(monkeypatch, caplog, tmp_path):
    """x and y are exchanged in a gradient."""
    from psf.ops import triton_kernels

    right = triton_kernels.triton_backward

    def wrong(*inputs: Any) -> Any:
        value, locations, weights = right(*inputs)
        return value, locations.flip(-1), weights

    monkeypatch.setattr(triton_kernels, "triton_backward", wrong)
    monkeypatch.setattr(dispatch, "MEASURED", ("cpu",))
    monkeypatch.setattr(dispatch, "_known", {})
    monkeypatch.setattr("psf.ops.measurement._milliseconds", lambda inputs, name: 0.1 if name == "triton" else 1.0)
    monkeypatch.setattr("psf.ops.measurement._SMALLEST", 64)
    monkeypatch.setenv("PSF_CACHE", str(tmp_path))
    monkeypatch.delenv("PSF_MSDA", raising=False)
    sizes = {"batch": 1, "queries": 10, "tokens": 10, "heads": 2, "dim": 4, "levels": 2, "points": 1}
    types = {"dtype": torch.float32, "weights_dtype": torch.float32}
    flags = {"is_deterministic": False, "can_measure": True}
    for has_gradient, name in ((False, "triton"), (True, "reference")):
        work = dispatch.Work(device=torch.device("cpu"), **types, **sizes, **flags, has_gradient=has_gradient)
        assert dispatch.choose(work).name == name
    assert "triton wrong: its gradient of the locations differs" in caplog.text


class Recorder:
    """In place of a kernel: notes its grid and its constants."""

    def __getitem__(self, grid: tuple[int, ...]) -> Recorder:
        self.grid = grid
        return self

    def __call__(self, *arguments: Any, **constants: Any) -> None:
        self.constants = constants


def launched(batch: int, tokens: int, queries: int) -> Recorder:
    from psf.ops import triton_kernels

    kernel = Recorder()
    value = torch.empty(batch, tokens, 8, 32, dtype=torch.float16, device="meta")
    locations = torch.empty(batch, queries, 8, 1, 4, 2, device="meta")
    triton_kernels._launch(kernel, (value, locations, locations[..., 0], value), [(1, tokens)])
    return kernel


def test_only_the_first_dimension_of_a_grid_may_be_large():
    kernel = launched(batch=9000, tokens=100, queries=300)
    assert kernel.grid == (9000 * 8 * 10,)  # 32 queries of a head at once


def test_offsets_of_huge_maps_have_64_bits():
    import triton.language as tl

    assert launched(1, 2**23 - 1, 1).constants["OFFSET"] == tl.int32
    assert launched(1, 2**23, 1).constants["OFFSET"] == tl.int64  # 2**31 numbers


def test_64_bit_offsets(device, monkeypatch):
    monkeypatch.setattr("psf.ops.triton_kernels._LARGEST_INT32", 0)
    check(problem(9, [(3, 4), (2, 3)], queries=7), device, 1e-12)


@pytest.mark.gpu
def test_more_images_and_heads_than_a_dimension_of_a_grid():
    value, shapes, locations, weights = problem(10, [(2, 3)], batch=70_000, queries=1, heads=1)
    inputs = (value.cuda(), shapes, locations.cuda(), weights.cuda())
    expected = output_and_gradients(ms_deform_attn_reference, (value, shapes, locations, weights))
    assert max(largest_differences(output_and_gradients(attend, inputs), expected)) < 1e-12


@pytest.mark.gpu
def test_a_map_of_more_than_2_31_numbers():
    """The last pixel, sampled at its center."""
    if torch.cuda.mem_get_info()[0] < 10 * 2**30:
        pytest.skip("needs 10 GB of free memory on the GPU")
    h, w = 4096, 2049
    value = torch.zeros(1, h * w, 8, 32, dtype=torch.float16, device="cuda")
    value[0, -1] = 1
    locations = torch.tensor([1 - 0.5 / w, 1 - 0.5 / h], device="cuda").expand(1, 1, 8, 1, 1, 2)
    output = attend(value, [(h, w)], locations, torch.ones(1, 1, 8, 1, 1, device="cuda"))
    torch.testing.assert_close(output, torch.ones_like(output), rtol=0, atol=2e-3)  # 1 / w has 24 bits


@pytest.mark.gpu
@pytest.mark.parametrize("has_gradient", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_gpu_measures_and_refuses_nothing(dtype, has_gradient):
    """Also shows what a measurement costs: seconds without the compilation, and memory."""
    usual = measurement.Problem(dtype, torch.float32, 8, 32, 3, 4, 4096, 4096, has_gradient)
    measurement.measure(usual, torch.device("cuda", 0), dispatch.IMPLEMENTATIONS)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, start = torch.cuda.memory_allocated(), time.monotonic()
    found = measurement.measure(usual, torch.device("cuda", 0), dispatch.IMPLEMENTATIONS)
    assert time.monotonic() - start < 3
    assert torch.cuda.max_memory_allocated() - before < 2**29
    assert not found.refused, found.refused
    assert found.fastest == "triton", found.milliseconds


@pytest.mark.gpu
def test_the_first_call_on_a_gpu_chooses(monkeypatch, tmp_path):
    monkeypatch.setenv("PSF_CACHE", str(tmp_path))
    monkeypatch.delenv("PSF_MSDA", raising=False)
    monkeypatch.setattr(dispatch, "_known", {})
    value, shapes, locations, weights = problem(11, [(9, 8), (4, 4)], queries=300)
    inputs = (value.float().cuda(), shapes, locations.float().cuda(), weights.float().cuda())
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")  # of the program: the measurement may wait, and restores it
    try:
        with torch.no_grad(), torch.autocast("cuda", dtype=torch.float16):
            found = [ms_deform_attn(*inputs, implementation="auto")]
        assert torch.cuda.get_sync_debug_mode() == 2
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    assert all(torch.isfinite(x).all() for x in found)
    (choice,) = dispatch._known.values()
    assert choice.reason.endswith("measured now")
    assert (tmp_path / "deformable_attention.json").is_file()


@pytest.mark.gpu
def test_the_capture_of_a_cuda_graph_does_not_measure(monkeypatch):
    monkeypatch.delenv("PSF_MSDA", raising=False)
    monkeypatch.setattr(dispatch, "_known", {})
    monkeypatch.setattr(dispatch, "measure", None)
    value, shapes, locations, weights = problem(12, [(9, 8)], queries=30)
    inputs = (value.float().cuda(), shapes, locations.float().cuda(), weights.float().cuda())
    expected = ms_deform_attn(*inputs, implementation="reference")  # also the warm-up
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = ms_deform_attn(*inputs)
    graph.replay()
    torch.testing.assert_close(output, expected)


@pytest.mark.gpu
def test_bag_and_reference_on_a_gpu():
    value, shapes, locations, weights = problem(8, [(5, 6), (2, 3), (1, 1)], queries=600, heads=8)
    expected = output_and_gradients(ms_deform_attn_reference, (value, shapes, locations, weights))
    inputs = (value.cuda(), shapes, locations.cuda(), weights.cuda())
    for name in ("bag", "reference"):
        found = output_and_gradients(partial(ms_deform_attn, implementation=name), inputs)
        assert max(largest_differences(found, expected)) < 1e-12


@pytest.mark.skipif(IN_INTERPRETER, reason="compiles")
@pytest.mark.parametrize(("kind", "dim", "capability"), [("bf16", 32, 90), ("fp16", 33, 80)])
def test_kernels_compile_for_a_gpu_that_is_not_here(kind, dim, capability):
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from psf.ops import triton_kernels

    columns = triton.next_power_of_2(dim)
    constants = {"LEVELS": 1, "POINTS": 1, "DIM": dim, "ROWS": 1024 // columns, "COLUMNS": columns}
    constants |= {"COMPUTE": tl.float32, "OFFSET": tl.int32 if dim == columns else tl.int64}
    for kernel in (triton_kernels._forward_kernel, triton_kernels._backward_kernel):
        signature = {}
        for name in kernel.arg_names:
            single = name in ("locations_ptr", "grad_locations_ptr", "grad_value_ptr")
            pointer = "*i32" if name == "levels_ptr" else f"*{'fp32' if single else kind}"
            signature[name] = "constexpr" if name in constants else pointer if name.endswith("_ptr") else "i32"
        places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
        source = ASTSource(kernel, signature, constexprs=places)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": True})
        # Sums of half precision would lose the gradients of pixels that many queries sample.
        assert (".add.f32" in compiled.asm["ptx"]) == (kernel is triton_kernels._backward_kernel)
        assert "add.noftz" not in compiled.asm["ptx"]
