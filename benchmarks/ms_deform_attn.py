#!/usr/bin/env python3
"""Time of deformable attention against grid_sample and other packages, after a comparison with float64.

On a CPU, each row is measured on one thread. Baselines from other packages are used if they are installed:
torch-ms-deform-attn (the official kernels, built from source) and deformops (Triton; GPUs only).

    python benchmarks/ms_deform_attn.py                     this machine's GPU if it has one, else its CPU
    python benchmarks/ms_deform_attn.py --device cpu --rounds 11
    python benchmarks/ms_deform_attn.py --memory bag        peak memory of a forward pass in this process, no times
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from peers import Attend, Shapes, other_implementations
from report import add_device, argument_parser, report, time_in_turns
from tabulate import tabulate
from torch import Tensor

from psf.ops import ms_deform_attn, ms_deform_attn_reference

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # relative to the largest number, output and gradients
OFFICIAL, DEFORMOPS = "torch-ms-deform-attn", "deformops"


class Case(NamedTuple):
    """Sizes of a call in a model at one image size."""

    name: str
    shapes: Shapes
    batch: int = 1
    channels: int = 32  # per head
    queries: int | None = None  # None: each token is a query


LARGE = [(100, 152), (50, 76), (25, 38), (13, 19)]
MEDIUM = [(50, 76), (25, 38), (13, 19), (7, 10)]
TINY = [(20, 20), (10, 10), (5, 5), (3, 3)]
ENCODER = Case("encoder, 800 x 1216", LARGE)
FORWARD = (
    ENCODER,
    Case("location decoder, 800 x 1216", LARGE, queries=300),
    Case("encoder, 400 x 608", MEDIUM),
    Case("tiny encoder, batch 4", TINY, batch=4, channels=12),
)
TRAINING = (
    Case("encoder, 400 x 608", MEDIUM),
    Case("location decoder, 400 x 608", MEDIUM, queries=300),
    Case("tiny encoder, batch 4", TINY, batch=4, channels=12),
    Case("tiny location decoder, batch 4", TINY, batch=4, channels=12, queries=200),
)
ON_GPU = (ENCODER._replace(batch=2), Case("location decoder, 800 x 1216", LARGE, batch=2, queries=300))


def main(words: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__, rounds=5)
    add_device(parser)
    parser.add_argument("--memory", choices=["bag", "reference"])
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    if options.memory:
        return print_memory(options.memory)
    rows: list[list[object]] = []
    if options.device == "cpu":
        for case in FORWARD[-1:] if options.quick else FORWARD:
            rows += measure(case, "cpu", torch.float32, "forward", options.rounds)
        for case in TRAINING[-1:] if options.quick else TRAINING:
            rows += measure(case, "cpu", torch.float32, "forward + backward", options.rounds)
    else:
        for case in TRAINING[-1:] if options.quick else ON_GPU:
            for dtype in (torch.float32, torch.bfloat16):
                for spread in (2.0, None):
                    rows += measure(case, options.device, dtype, "forward + backward", options.rounds, spread)
    headers = ["case", "pass", "type", "points", "implementation", "error", "ms", "/ reference"]
    table = tabulate(rows, headers, tablefmt="pipe", floatfmt=("", "", "", "", "", ".1e", ".2f", ".3f"))
    where = torch.cuda.get_device_name() if options.device == "cuda" else "CPU, one thread"
    report(
        "ms_deform_attn",
        f"{where}; 8 heads, 4 points, median of {options.rounds} rounds in turns\n\n{table}",
        quick=options.quick,
    )


def measure(
    case: Case, device: str, dtype: torch.dtype, which: str, rounds: int, spread: float | None = 2.0
) -> list[list[object]]:
    """Rows of the table; the script ends if one of psf's implementations is wrong."""
    inputs = problem(case, device, spread)
    exact = run(ms_deform_attn_reference, inputs, which)
    typed = (inputs[0].to(dtype), inputs[1], inputs[2].float(), inputs[3].to(dtype))
    functions, errors = {}, {}
    for name, attend in implementations(device, dtype).items():
        found = run(attend, typed, which)
        differences = (((x.double() - y).abs().max() / y.abs().max()).item() for x, y in zip(found, exact, strict=True))
        errors[name] = max(differences)
        functions[name] = partial(run, attend, typed, which)
    del exact
    for name, error in errors.items():
        if name not in (OFFICIAL, DEFORMOPS) and not error < TOLERANCE[dtype]:
            sys.exit(f"{case.name}, {which}, {dtype}: the error of {name} is {error:.1e}")
    times = time_in_turns(list(functions.values()), rounds)
    kind = "uniform" if spread is None else f"within {spread:g} px"
    first = (case.name, which, str(dtype).removeprefix("torch."), kind)
    return [[*first, name, errors[name], time, time / times[0]] for name, time in zip(functions, times, strict=True)]


def problem(case: Case, device: str, spread: float | None) -> tuple[Tensor, Shapes, Tensor, Tensor]:
    """float64 inputs; sampling points are normal around the query, with deviation `spread` in pixels; None: uniform."""
    generator = torch.Generator().manual_seed(0)
    random = partial(torch.randn, generator=generator, dtype=torch.float64)
    heads, points = 8, 4
    value = random(case.batch, sum(h * w for h, w in case.shapes), heads, case.channels)
    places = []
    for h, w in case.shapes:
        y, x = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
        places.append(torch.stack((x, y), dim=-1).flatten(0, 1))
    centres = torch.cat(places).double()
    if case.queries is not None:
        centres = centres[torch.randint(len(centres), (case.queries,), generator=generator)]
    sizes = torch.tensor([(w, h) for h, w in case.shapes], dtype=torch.float64)[:, None]
    size = (case.batch, len(centres), heads, len(case.shapes), points)
    if spread is None:
        locations = torch.rand(*size, 2, generator=generator, dtype=torch.float64)
    else:
        locations = centres[:, None, None, None] + random(*size, 2) * spread / sizes
    # Gradients of the locations jump where a coordinate passes a pixel's center, and rounding may move it to the other
    # side: keep a distance. Round to float32, so that all types have the same points.
    pixels = locations * sizes - 0.5
    pixels = pixels.floor() + pixels.frac().remainder(1).clamp(0.01, 0.99)
    locations = ((pixels + 0.5) / sizes).float().double()
    weights = random(*size).flatten(3).softmax(-1).view(size)
    return value.to(device), case.shapes, locations.to(device), weights.to(device)


def run(attend: Attend, inputs: tuple[Tensor, Shapes, Tensor, Tensor], which: str) -> list[Tensor]:
    """Run a pass: the output, or the output and the three gradients."""
    value, shapes, locations, weights = inputs
    if which == "forward":
        with torch.no_grad():
            found = [attend(value, shapes, locations, weights)]
    else:
        leaves = [x.detach().requires_grad_() for x in (value, locations, weights)]
        output = attend(leaves[0], shapes, leaves[1], leaves[2])
        found = [output, *torch.autograd.grad(output, leaves, torch.ones_like(output))]
    if value.is_cuda:
        torch.cuda.synchronize()
    return found


def implementations(device: str, dtype: torch.dtype) -> dict[str, Attend]:
    """Implementations by name, the reference first; other packages if they are installed."""
    found: dict[str, Attend] = {"reference": ms_deform_attn_reference, "psf's choice": ms_deform_attn}
    found["bag"] = partial(ms_deform_attn, implementation="bag")
    if device == "cuda":
        found["triton"] = partial(ms_deform_attn, implementation="triton")
    others = other_implementations(device)
    if dtype != torch.float32:
        others.pop(OFFICIAL, None)  # supports float32 only
    return {**found, **others}


def print_memory(name: str) -> None:
    """Print the growth of peak memory in a forward pass of the encoder at 800 x 1216, in this process (Linux)."""
    value, shapes, locations, weights = problem(ENCODER, "cpu", 2.0)
    inputs = (value.float(), shapes, locations.float(), weights.float())
    del value, locations, weights
    run(partial(ms_deform_attn, implementation=name), problem(TRAINING[-1], "cpu", 2.0), "forward")  # loads libraries
    ctypes.CDLL(None).malloc_trim(0)  # memory that is already free must not count as used
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    before = _memory("VmRSS")
    output = run(partial(ms_deform_attn, implementation=name), inputs, "forward")[0]
    growth = _memory("VmHWM") - before
    print(f"{name}: {growth / 1024:.0f} MiB, including the output of {output.numel() * 4 / 2**20:.0f} MiB")


def _memory(kind: str) -> int:
    """KiB, from the kernel's statistics of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind))


if __name__ == "__main__":
    main()
