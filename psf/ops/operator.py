"""The torch operator `psf::ms_deform_attn`, with gradients: torch.compile sees one node and no Python.

Its tensors are contiguous, and spatial_shapes is h0, w0, h1, w1, ...: operator schemas have no pairs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from psf.ops.bag import bag_backward, bag_forward
from psf.ops.reference import ms_deform_attn_reference

__all__ = ["attend", "attend_by"]

_INPUTS = "Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, Tensor attention_weights"


def _functions(name: str) -> tuple[Callable[..., Tensor], Callable[..., tuple[Tensor, Tensor, Tensor]]]:
    """Forward and backward of an implementation; imports the optional package triton only if it is needed."""
    if name == "triton":
        kernels = importlib.import_module("psf.ops.triton_kernels")
        return kernels.triton_forward, kernels.triton_backward
    return bag_forward, bag_backward


def _pairs(flat: list[int]) -> list[tuple[int, int]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


@torch.library.custom_op(
    "psf::ms_deform_attn", mutates_args=(), schema=f"({_INPUTS}, str forward_by, str backward_by) -> Tensor"
)
def attend(
    value: Tensor,
    spatial_shapes: list[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    forward_by: str,
    backward_by: str,
) -> Tensor:
    """`psf.ops.ms_deform_attn` for checked arguments, by "bag" or "triton"."""
    forward, _ = _functions(forward_by)
    return forward(value, _pairs(spatial_shapes), sampling_locations, attention_weights)


@attend.register_fake
def _(
    value: Tensor,
    spatial_shapes: list[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    forward_by: str,
    backward_by: str,
) -> Tensor:
    batch, _, heads, dim = value.shape
    return value.new_empty(batch, sampling_locations.shape[1], heads * dim)


@torch.library.custom_op(
    "psf::ms_deform_attn_backward",
    mutates_args=(),
    schema=f"(Tensor grad_output, {_INPUTS}, str backward_by) -> (Tensor, Tensor, Tensor)",
)
def attend_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: list[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    backward_by: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights."""
    _, backward = _functions(backward_by)
    shapes = _pairs(spatial_shapes)
    return backward(grad_output.contiguous(), value, shapes, sampling_locations, attention_weights)


@attend_backward.register_fake
def _(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: list[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    backward_by: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(value), torch.empty_like(sampling_locations), torch.empty_like(attention_weights)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.spatial_shapes, sampling_locations, attention_weights, _, ctx.backward_by = inputs
    ctx.save_for_backward(value, sampling_locations, attention_weights)


def _differentiate(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    value, sampling_locations, attention_weights = ctx.saved_tensors
    grad_value, grad_locations, grad_weights = attend_backward(
        grad_output, value, ctx.spatial_shapes, sampling_locations, attention_weights, ctx.backward_by
    )
    return grad_value, None, grad_locations, grad_weights, None, None


attend.register_autograd(_differentiate, setup_context=_save)


def attend_by(
    name: str,
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    is_deterministic: bool = False,
) -> Tensor:
    """`psf.ops.ms_deform_attn` for checked arguments, by the named implementation; the reference needs no operator."""
    inputs = (value, sampling_locations, attention_weights)
    if name == "reference":
        return ms_deform_attn_reference(value, spatial_shapes, sampling_locations, attention_weights)
    value, sampling_locations, attention_weights = (x.contiguous() for x in inputs)
    flat_shapes = [size for shape in spatial_shapes for size in shape]
    backward_by = "bag" if is_deterministic else name
    return attend(value, flat_shapes, sampling_locations, attention_weights, name, backward_by)
