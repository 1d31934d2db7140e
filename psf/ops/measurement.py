"""Check and time the implementations of deformable attention on a small problem of the same class as a call."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from psf.ops.operator import attend_by

__all__ = ["Measurement", "Problem", "measure", "measured_size"]

# Largest difference from the reference, relative to the largest number: of the output and of each gradient. At least
# ten times the rounding errors of the bag on a CPU.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}
# Bounds of a measurement: it takes about a second, besides the compilation of kernels, and less than 0.5 GB (measured
# on a CPU; twice this in float64), because the reference has tensors of SAMPLES numbers.
SAMPLES = 2**24
SECONDS = 0.5
ROUNDS = 5
_SMALLEST = 256  # queries or tokens


class Problem(NamedTuple):
    """A class of calls: one measurement is valid for all of them."""

    dtype: torch.dtype  # of the value
    weights_dtype: torch.dtype  # of the attention weights: float32 under autocast, where the value is in half precision
    heads: int
    dim: int  # channels of a head
    levels: int
    points: int  # per level
    queries: int  # of all images, from `measured_size`, as the tokens
    tokens: int  # of all levels
    has_gradient: bool

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        if self.weights_dtype != self.dtype:
            name += f" with {str(self.weights_dtype).removeprefix('torch.')} weights"
        gradient = "with" if self.has_gradient else "without"
        return (
            f"{name}, {self.heads} heads x {self.dim}, {self.levels} levels x {self.points} points, "
            f"{self.queries} queries, {self.tokens} tokens, {gradient} gradients"
        )


class Measurement(NamedTuple):
    """What was found for each implementation; each is in one of the two."""

    milliseconds: dict[str, float]  # of the implementations without an error
    refused: dict[str, str]  # why the others were not timed

    @property
    def fastest(self) -> str:
        """The fastest implementation without an error; the reference if there is none."""
        return min(self.milliseconds, key=lambda name: self.milliseconds[name], default="reference")


def measured_size(number: int, heads: int, dim: int, levels: int, points: int) -> int:
    """The magnitude of a number of queries, or of tokens, of all images together: 256, 1024, ...

    At most as many as bound the memory of a measurement: larger calls are measured with this size.
    """
    largest = max(2, SAMPLES // (heads * dim * levels * points) // 2 * 2)
    size = _SMALLEST
    while size < min(number, largest):
        size *= 4
    return min(size, largest)


def measure(problem: Problem, device: torch.device, names: Sequence[str]) -> Measurement:
    """Check the named implementations against the reference, and time the right ones in turns.

    Runs in a thread of its own, where grad mode, autocast, inference mode, streams, and modes that intercept torch's
    functions have their defaults. Draws from no random generator of the program. No exception of an implementation
    ends the program, and none of a lack of memory.

    Args:
        problem: what to measure.
        device: where.
        names: the implementations; the first is the reference.
    """
    with ThreadPoolExecutor(1) as pool, _waits_allowed(device):
        return pool.submit(_measure, problem, device, names).result()


@contextmanager
def _waits_allowed(device: torch.device) -> Iterator[None]:
    """A program may have asked torch to raise where the host waits for the GPU, as a measurement does."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("default")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _measure(problem: Problem, device: torch.device, names: Sequence[str]) -> Measurement:
    if device.type == "cuda":
        torch.cuda.set_device(device)  # of this thread; the default is GPU 0, where it would take memory
    refused: dict[str, str] = {}
    times: dict[str, list[float]] = {}
    try:
        inputs = _Inputs.random(problem, device)
        expected = inputs.run(names[0])
    except Exception as error:
        return Measurement({}, dict.fromkeys(names, _in_one_line(error)))
    for name in names:
        try:
            reason = _difference(inputs.run(name), expected, TOLERANCE[problem.dtype])
        except Exception as error:  # of a compiler, a launch, or a lack of memory
            reason = _in_one_line(error)
        if reason:
            refused[name] = reason
        else:
            times[name] = []
    start = time.monotonic()
    for _ in range(ROUNDS):
        for name in list(times):
            try:
                times[name].append(_milliseconds(inputs, name))
            except Exception as error:
                refused[name] = _in_one_line(error)
                del times[name]
        if time.monotonic() - start > SECONDS:
            break
    return Measurement({name: min(found) for name, found in times.items()}, refused)


class _Inputs(NamedTuple):
    """Arguments of a call for two images, and the gradient of its output."""

    value: Tensor
    shapes: list[tuple[int, int]]
    locations: Tensor
    weights: Tensor
    grad_output: Tensor
    has_gradient: bool

    @classmethod
    def random(cls, problem: Problem, device: torch.device) -> _Inputs:
        """Points within a few pixels of the queries' places, as a trained model has them; some are outside the map.

        The levels of an image halve in size, and have about half of the problem's tokens together.
        """
        generator = torch.Generator().manual_seed(0)
        precision = torch.promote_types(problem.dtype, torch.float32)
        heads, levels, points, queries = problem.heads, problem.levels, problem.points, problem.queries // 2
        width = max(2, int((problem.tokens / 2 / 1.34) ** 0.5))
        shapes = [(max(1, width >> i), max(1, width >> i) + 1) for i in range(levels)]  # height and width differ
        size = (2, queries, heads, levels, points)
        places = torch.rand(2, queries, 1, 1, 1, 2, generator=generator, dtype=torch.float64)
        sizes = torch.tensor([(w, h) for h, w in shapes], dtype=torch.float64)[:, None]
        pixels = places * sizes + 2 * torch.randn(*size, 2, generator=generator, dtype=torch.float64)
        # The gradient of a location jumps at pixel centers: rounding must not move a point across one.
        pixels = pixels.floor() + pixels.frac().remainder(1).clamp(0.02, 0.98)
        tensors = (
            torch.randn(2, sum(h * w for h, w in shapes), heads, problem.dim, generator=generator).to(problem.dtype),
            ((pixels + 0.5) / sizes).to(precision),
            torch.rand(*size, generator=generator).to(problem.weights_dtype),
            torch.randn(2, queries, heads * problem.dim, generator=generator).to(problem.dtype),
        )
        value, locations, weights, grad_output = (x.to(device) for x in tensors)
        if problem.has_gradient:
            value, locations, weights = (x.requires_grad_() for x in (value, locations, weights))
        return cls(value, shapes, locations, weights, grad_output, problem.has_gradient)

    def run(self, name: str) -> list[Tensor]:
        """Output, and gradients if there are any, of an implementation; the device has finished."""
        with torch.set_grad_enabled(self.has_gradient):
            output = attend_by(name, self.value, self.shapes, self.locations, self.weights)
            results = [output.detach()]
            if self.has_gradient:
                results += torch.autograd.grad(output, (self.value, self.locations, self.weights), self.grad_output)
        if self.value.is_cuda:
            torch.cuda.synchronize(self.value.device)
        return results


def _milliseconds(inputs: _Inputs, name: str) -> float:
    """Time of one call, from a device without work to a device without work."""
    start = time.perf_counter()
    inputs.run(name)
    return 1e3 * (time.perf_counter() - start)


def _difference(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> str:
    """Why a result is wrong; "" if it is right."""
    names = ("output", "gradient of the value", "gradient of the locations", "gradient of the weights")
    for name, x, y in zip(names, found, expected, strict=False):
        largest = y.abs().max().clamp(min=1e-30)
        error = float((x.to(y) - y).abs().max() / largest) if x.shape == y.shape else float("inf")
        if not error <= tolerance:  # NaN is wrong, too
            return f"wrong: its {name} differs from the reference by {error:.1e} of the largest number"
    return ""


def _in_one_line(error: Exception) -> str:
    return f"fails: {type(error).__name__}: {' '.join(str(error).split())[:300]}".rstrip(": ")
