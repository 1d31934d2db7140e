"""Random inputs of deformable attention, and all that it returns for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["Problem", "largest_differences", "output_and_gradients", "problem"]

Problem = tuple[Tensor, list[tuple[int, int]], Tensor, Tensor]


def problem(
    seed: int,
    shapes: list[tuple[int, int]],
    *,
    batch: int = 2,
    queries: int = 5,
    heads: int = 3,
    dim: int = 2,
    points: int = 2,
    spread: float = 1.0,
) -> Problem:
    """Random float64 inputs; locations are uniform in [0.5 - spread, 0.5 + spread]."""
    generator = torch.Generator().manual_seed(seed)

    def random(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator, dtype=torch.float64)

    value = random(batch, sum(h * w for h, w in shapes), heads, dim) - 0.5
    locations = 0.5 + spread * (2 * random(batch, queries, heads, len(shapes), points, 2) - 1)
    return value, shapes, locations, random(batch, queries, heads, len(shapes), points)


def output_and_gradients(attend: Callable[..., Tensor], inputs: Problem) -> list[Tensor]:
    """The output, and the gradients of value, locations and weights for a gradient of the output made by formula."""
    value, shapes, locations, weights = inputs
    leaves = [x.detach().requires_grad_() for x in (value, locations, weights)]
    output = attend(leaves[0], shapes, leaves[1], leaves[2])
    grad_output = torch.arange(output.numel(), dtype=torch.float64).cos().view(output.shape).to(output)
    return [output, *torch.autograd.grad(output, leaves, grad_output)]


def largest_differences(found: Sequence[Tensor], expected: Sequence[Tensor]) -> list[float]:
    """Of each pair, relative to the largest number expected; shapes must be equal."""
    pairs = list(zip(found, expected, strict=True))
    assert all(x.shape == y.shape for x, y in pairs)
    return [((x.cpu().double() - y).abs().max() / y.abs().max().clamp(min=1e-30)).item() for x, y in pairs]
