"""Numbers of parameters, by part of the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tabulate import tabulate
from torch import Tensor, nn

__all__ = ["PartSize", "count_parameters", "parameter_table"]


class PartSize(NamedTuple):
    """Numbers that one part of a model is made of."""

    part: str
    parameters: int
    with_gradient: int  # those of them that are trained: what the paper counts
    # Weights and biases of frozen batch norms, which Detectron2 and timm keep as buffers and others as parameters.
    frozen_affine: int


def count_parameters(model: nn.Module) -> list[PartSize]:
    """The size of each direct child that has any numbers to count, and of the whole model, "total".

    What several parts share is counted in each of them, and once in the total. Works on the meta device.
    """
    parts = [_size(name, child) for name, child in model.named_children()]
    return [*(size for size in parts if any(size[1:])), _size("total", model)]


def _size(name: str, module: nn.Module) -> PartSize:
    affine = (b for n, b in module.named_buffers() if n.rpartition(".")[2] in ("weight", "bias"))
    trained = (p for p in module.parameters() if p.requires_grad)
    return PartSize(name, _numel(module.parameters()), _numel(trained), _numel(affine))


def _numel(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def parameter_table(sizes: Sequence[PartSize]) -> str:
    """One row per part, as text."""
    headers = ("part", "parameters", "with gradient", "affine of frozen norms (buffers)")
    return tabulate(sizes, headers, tablefmt="github", intfmt=",")
