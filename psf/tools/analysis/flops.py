"""Count parameters by part of the model, and multiply-adds of a forward pass by part and operator.

One multiply-add is one FLOP, as in the paper.

fvcore traces the model and counts the operators that it supports. This module adds attention, deformable attention, and
a list of operators that are ignored on purpose. Any other operator is reported, not silently ignored.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import elementwise_flop_counter, get_shape
from tabulate import tabulate
from torch import Tensor, nn

from psf.meta_arch import PanopticSegFormer

__all__ = [
    "FlopCount",
    "PartSize",
    "count_flops",
    "count_image_flops",
    "count_parameters",
    "flop_tables",
    "parameter_table",
]

OUTSIDE = "(outside of them)"

# Not counted, as usual: a few operations per number; a linear layer does hundreds.
_ELEMENTWISE = """
    abs add bitwise_and bitwise_or ceil clamp clamp_max clamp_min cos div elu eq exp floor floor_divide ge gelu gt
    hardsigmoid hardswish hardtanh isfinite le leaky_relu log log2 logical_and logical_not logical_or lt masked_fill
    maximum minimum mul ne neg pow reciprocal relu relu6 remainder rsqrt rsub sigmoid silu sin softmax sqrt square sub
    tanh where
"""
_REDUCTIONS = """
    all amax amin any argmax argsort avg_pool2d cumsum linalg_vector_norm max max_pool2d mean min norm prod sort sum
    topk
"""
_MOVES = """
    clone empty_like expand_as fill flip index_select linspace meshgrid movedim new_ones ones_like pad repeat
    repeat_interleave take_along_dim unflatten zero
"""
IGNORED = (*_ELEMENTWISE.split(), *_REDUCTIONS.split(), *_MOVES.split())

# Per channel of a sampled point: four corners of the bilinear interpolation, and the point's weight in the sum
# (the 5 in the complexity of Deformable DETR's appendix).
SAMPLING = 5


class FlopCount(NamedTuple):
    """Multiply-adds, and the operators that are not counted."""

    by_part: dict[str, Counter[str]]  # direct child of the module, or OUTSIDE -> operator -> multiply-adds
    ignored: Counter[str]  # operator -> number of calls: elementwise, reductions, copies
    unsupported: Counter[str]  # operator -> number of calls: their cost is unknown

    @property
    def by_operator(self) -> Counter[str]:
        return sum(self.by_part.values(), Counter())

    @property
    def total(self) -> int:
        return sum(self.by_operator.values())


def count_image_flops(model: PanopticSegFormer, height: int, width: int) -> FlopCount:
    """Count the FLOPs of one image at test, from the image to the candidates, without post-processing.

    Sets the model to eval mode, and runs it once on a gray image on the model's device.
    """
    image = torch.full((len(model.pixel_mean), height, width), 128, dtype=torch.uint8, device=model.device)
    return count_flops(_OneImage(model.eval()), (image,), parts_of="model")


def count_flops(module: nn.Module, inputs: tuple[Tensor, ...], *, parts_of: str = "") -> FlopCount:
    """Count the FLOPs of `module(*inputs)`.

    Args:
        module: returns tensors.
        inputs: of its forward.
        parts_of: name of the submodule whose children are the parts; "": the module itself.
    """
    ignored: Counter[str] = Counter()
    analysis = FlopCountAnalysis(module, inputs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)  # the result lists unsupported operators
    analysis.set_op_handle(**_handles(ignored))
    with torch.no_grad(), _no_fused_layers():
        counts = analysis.by_module_and_operator()
    prefix = f"{parts_of}." if parts_of else ""
    names = dict.fromkeys(name for name, _ in module.get_submodule(parts_of).named_children())
    by_part = {name: counts[analysis.canonical_module_name(prefix + name)] for name in names}
    by_part[OUTSIDE] = counts[""] - sum(by_part.values(), Counter())
    by_part = {name: count for name, count in by_part.items() if sum(count.values())}
    return FlopCount(by_part, ignored, Counter(analysis.unsupported_ops()))


def flop_tables(count: FlopCount) -> str:
    """Text tables of FLOPs by part and by operator, and of the operators that are not counted."""
    parts = {name: sum(operators.values()) for name, operators in count.by_part.items()}
    lines = [_table("part", parts), "", _table("operator", dict(count.by_operator.most_common())), ""]
    lines += [f"Ignored (elementwise, reductions, copies): {_calls(count.ignored)}"]
    lines += [f"Unsupported (cost unknown, not in the total): {_calls(count.unsupported)}"]
    return "\n".join(lines)


def _table(what: str, flops: dict[str, int]) -> str:
    total = sum(flops.values())
    rows = [(name, n / 1e9, 100 * n / total) for name, n in (*flops.items(), ("total", total)) if n]
    return tabulate(rows, (what, "G multiply-adds", "%"), tablefmt="github", floatfmt=("", ".3f", ".1f"))


def _calls(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {number}x" for name, number in counts.most_common()) or "none"


class _OneImage(nn.Module):
    """Wraps a model for tracing: tensors in, tensors out; operators without effect on an output do not count."""

    def __init__(self, model: PanopticSegFormer):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> list[Tensor]:
        (candidates,) = self.model.candidates(self.model.preprocess([{"image": image}]).tensor, None)
        return [x for x in candidates if x is not None]


@contextmanager
def _no_fused_layers() -> Iterator[None]:
    """Turn off torch's fused MultiheadAttention in eval mode, because counters do not support this operator."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


Handle = Callable[[list[Any], list[Any]], int]


def _handles(ignored: Counter[str]) -> dict[str, Handle]:
    """Handles that extend or replace fvcore's, by operator name; `ignored` collects operators that are not counted."""

    def ignore(name: str) -> Handle:
        def handle(inputs: list[Any], outputs: list[Any]) -> int:
            ignored[name] += 1
            return 0

        return handle

    handles = {f"aten::{name}{suffix}": ignore(name) for name in IGNORED for suffix in ("", "_")}
    return {
        **handles,
        "aten::matmul": _matmul,
        "aten::baddbmm": lambda inputs, outputs: _matmul(inputs[1:], outputs),  # the addend comes first
        "aten::scaled_dot_product_attention": _attention,
        "aten::grid_sampler": elementwise_flop_counter(0, SAMPLING),
        "psf::ms_deform_attn": _deformable_attention,
    }


def _shapes(values: Sequence[Any]) -> list[list[int]]:
    """The shapes of the tensors among `values`."""
    return [shape for shape in map(get_shape, values) if shape is not None]


def _matmul(inputs: list[Any], outputs: list[Any]) -> int:
    """Unlike fvcore's, also correct if only the second factor has a batch."""
    return math.prod(get_shape(outputs[0])) * get_shape(inputs[0])[-1]


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """Q K^T and A V: queries (..., N, E), keys (..., S, E), values (..., S, F) -> heads * N * S * (E + F)."""
    queries, keys, values = (get_shape(x) for x in inputs[:3])
    return math.prod(queries[:-1]) * keys[-2] * (keys[-1] + values[-1])


def _deformable_attention(inputs: list[Any], outputs: list[Any]) -> int:
    """Weights (B, Q, heads, L, P) are the input with five dimensions; each belongs to a point of D/heads channels."""
    (weights,) = (shape for shape in _shapes(inputs) if len(shape) == 5)
    channels = get_shape(outputs[0])[-1] // weights[2]
    return SAMPLING * math.prod(weights) * channels


class PartSize(NamedTuple):
    """Parameter counts of one part of a model."""

    part: str
    parameters: int
    with_gradient: int  # trained parameters, which the paper counts
    # Weights and biases of frozen batch norms: buffers in Detectron2 and timm, parameters in other libraries.
    frozen_affine: int


def count_parameters(model: nn.Module) -> list[PartSize]:
    """The size of each direct child with parameters or such buffers, and of the whole model, "total".

    Shared parameters count in each part, and once in the total. Works on the meta device.
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
    """A text table with one row per part."""
    headers = ("part", "parameters", "with gradient", "affine of frozen norms (buffers)")
    return tabulate(sizes, headers, tablefmt="github", intfmt=",")
