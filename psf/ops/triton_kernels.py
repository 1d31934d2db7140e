"""Deformable attention in Triton, forward and backward; the first call on a GPU compiles the kernels in seconds.

A program computes a block of neighboring queries for one head of one image. All queries of a head come before those of
the next head, so that the head's values stay in the cache. Loaded values are converted to COMPUTE (float32 or float64)
before any arithmetic, and the gradient of the value is summed in COMPUTE. The order of this sum depends on the order in
which programs run, so its last bits differ from run to run.

The grid has one dimension, because the others are limited to 65535 programs. Numbers of tokens and queries are not
specialized: images of other sizes compile nothing anew. OFFSET is the type of offsets within an image.

With TRITON_INTERPRET=1, set before the first import, the same kernels run on a CPU, for tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from psf.ops.transfer import kept_table

__all__ = ["triton_backward", "triton_forward"]

_TILE = 1024  # numbers in a (queries, channels) tile: 8 for each thread of 4 warps
_LARGEST_INT32 = 2**31 - 1


@triton.jit
def _block(queries, heads, POINTS: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """This program's image and head; a mask of its valid queries, their first points, and their output elements."""
    blocks = tl.cdiv(queries, ROWS)
    query, channel = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    map_of_head = tl.program_id(0) // blocks
    image, head = (map_of_head // heads).to(tl.int64), map_of_head % heads
    bag = (image * queries + query) * heads + head
    exists = query < queries
    return image, head, exists, bag * POINTS, bag[:, None] * DIM + channel[None, :], exists[:, None] & (channel < DIM)


@triton.jit
def _axis(coordinate, size, COMPUTE: tl.constexpr):
    """The first of the two pixels around a coordinate, clamped to [-2, size], and the distance from it."""
    x = tl.clamp(coordinate.to(COMPUTE) * size - 0.5, -2.0, size.to(COMPUTE), propagate_nan=tl.PropagateNan.ALL)
    first = tl.floor(x)
    return first, x - first


@triton.jit
def _neighbor(first, distance, size, IS_SECOND: tl.constexpr):
    """One of the two pixels: its coordinate, whether it is on the map, its weight, and the slope of the weight."""
    if IS_SECOND:
        return first.to(tl.int32) + 1, (first >= -1) & (first < size - 1), distance, 1.0
    else:
        return first.to(tl.int32), (first >= 0) & (first < size), 1 - distance, -1.0


@triton.jit(do_not_specialize=["tokens", "queries"])
def _forward_kernel(
    value_ptr,
    levels_ptr,
    locations_ptr,
    weights_ptr,
    output_ptr,
    tokens,
    queries,
    heads,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    COMPUTE: tl.constexpr,
    OFFSET: tl.constexpr,
):
    image, head, exists, first_point, bags, is_bag = _block(queries, heads, LEVELS * POINTS, DIM, ROWS, COLUMNS)
    channel = tl.arange(0, COLUMNS)[None, :]
    value_ptr += (image * tokens * heads + head) * DIM
    total = tl.zeros((ROWS, COLUMNS), COMPUTE)
    for level in range(LEVELS):
        height, width = tl.load(levels_ptr + 3 * level), tl.load(levels_ptr + 3 * level + 1)
        start = tl.load(levels_ptr + 3 * level + 2)
        for point in tl.static_range(POINTS):
            at = first_point + level * POINTS + point
            left, x = _axis(tl.load(locations_ptr + 2 * at, mask=exists, other=-1.0), width, COMPUTE)
            upper, y = _axis(tl.load(locations_ptr + 2 * at + 1, mask=exists, other=-1.0), height, COMPUTE)
            weight = tl.load(weights_ptr + at, mask=exists, other=0.0).to(COMPUTE)
            for i in tl.static_range(2):
                row, has_row, weight_y, _ = _neighbor(upper, y, height, i == 1)
                for j in tl.static_range(2):
                    column, has_column, weight_x, _ = _neighbor(left, x, width, j == 1)
                    pixels = (start + row * width + column)[:, None].to(OFFSET) * (heads * DIM) + channel
                    mask = is_bag & (has_row & has_column)[:, None]
                    values = tl.load(value_ptr + pixels, mask=mask, other=0.0).to(COMPUTE)
                    total += (weight * weight_y * weight_x)[:, None] * values
    tl.store(output_ptr + bags, total.to(output_ptr.dtype.element_ty), mask=is_bag)


@triton.jit(do_not_specialize=["tokens", "queries"])
def _backward_kernel(
    value_ptr,
    levels_ptr,
    locations_ptr,
    weights_ptr,
    grad_output_ptr,
    grad_value_ptr,
    grad_locations_ptr,
    grad_weights_ptr,
    tokens,
    queries,
    heads,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    COMPUTE: tl.constexpr,
    OFFSET: tl.constexpr,
):
    image, head, exists, first_point, bags, is_bag = _block(queries, heads, LEVELS * POINTS, DIM, ROWS, COLUMNS)
    channel = tl.arange(0, COLUMNS)[None, :]
    value_ptr += (image * tokens * heads + head) * DIM
    grad_value_ptr += (image * tokens * heads + head) * DIM
    grad = tl.load(grad_output_ptr + bags, mask=is_bag, other=0.0).to(COMPUTE)
    for level in range(LEVELS):
        height, width = tl.load(levels_ptr + 3 * level), tl.load(levels_ptr + 3 * level + 1)
        start = tl.load(levels_ptr + 3 * level + 2)
        for point in tl.static_range(POINTS):
            at = first_point + level * POINTS + point
            left, x = _axis(tl.load(locations_ptr + 2 * at, mask=exists, other=-1.0), width, COMPUTE)
            upper, y = _axis(tl.load(locations_ptr + 2 * at + 1, mask=exists, other=-1.0), height, COMPUTE)
            weight = tl.load(weights_ptr + at, mask=exists, other=0.0).to(COMPUTE)
            grad_weight = tl.zeros((ROWS,), COMPUTE)
            grad_x = tl.zeros((ROWS,), COMPUTE)
            grad_y = tl.zeros((ROWS,), COMPUTE)
            for i in tl.static_range(2):
                row, has_row, weight_y, slope_y = _neighbor(upper, y, height, i == 1)
                for j in tl.static_range(2):
                    column, has_column, weight_x, slope_x = _neighbor(left, x, width, j == 1)
                    pixels = (start + row * width + column)[:, None].to(OFFSET) * (heads * DIM) + channel
                    mask = is_bag & (has_row & has_column)[:, None]
                    values = tl.load(value_ptr + pixels, mask=mask, other=0.0).to(COMPUTE)
                    product = tl.sum(values * grad, axis=1)
                    grad_weight += product * weight_y * weight_x
                    grad_x += product * weight_y * slope_x
                    grad_y += product * weight_x * slope_y
                    share = (weight * weight_y * weight_x)[:, None] * grad
                    tl.atomic_add(grad_value_ptr + pixels, share, mask=mask, sem="relaxed")
            grad_x, grad_y = grad_x * weight * width, grad_y * weight * height
            tl.store(grad_locations_ptr + 2 * at, grad_x, mask=exists)
            tl.store(grad_locations_ptr + 2 * at + 1, grad_y, mask=exists)
            tl.store(grad_weights_ptr + at, grad_weight.to(grad_weights_ptr.dtype.element_ty), mask=exists)


def _level_table(shapes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """(L, 3) int32: height, width and first token."""
    rows, start = [], 0
    for h, w in shapes:
        rows.append((h, w, start))
        start += h * w
    return kept_table(tuple(rows), torch.int32, device)


def _launch(kernel: Any, tensors: tuple[Tensor, ...], shapes: Sequence[tuple[int, int]]) -> None:
    """Run a kernel over all queries; its tensors begin with value, locations and weights."""
    value, locations, weights, *others = tensors
    batch, tokens, heads, dim = value.shape
    queries, num_levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    if batch * queries * heads == 0:
        return
    columns = triton.next_power_of_2(dim)
    rows = max(1, min(triton.next_power_of_2(queries), _TILE // columns))
    levels = _level_table(shapes, value.device)
    compute = tl.float64 if locations.dtype == torch.float64 else tl.float32
    with torch.cuda.device_of(value):
        kernel[(triton.cdiv(queries, rows) * batch * heads,)](
            *(value, levels, locations, weights, *others),
            *(tokens, queries, heads),
            LEVELS=num_levels,
            POINTS=points,
            DIM=dim,
            ROWS=rows,
            COLUMNS=columns,
            COMPUTE=compute,
            OFFSET=tl.int32 if tokens * heads * dim <= _LARGEST_INT32 else tl.int64,
            enable_fp_fusion=True,  # triton 3.10 changes the default, and 3.9 warns about it
        )


def triton_forward(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Arguments and result as in `psf.ops.ms_deform_attn`; contiguous, locations in float32 or float64."""
    batch, _, heads, dim = value.shape
    output = value.new_empty(batch, sampling_locations.shape[1], heads * dim)
    _launch(_forward_kernel, (value, sampling_locations, attention_weights, output), spatial_shapes)
    return output


def triton_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights, each in the precision of its tensor."""
    grad_value = torch.zeros_like(value, dtype=sampling_locations.dtype)
    grad_locations, grad_weights = torch.empty_like(sampling_locations), torch.empty_like(attention_weights)
    tensors = (value, sampling_locations, attention_weights, grad_output, grad_value, grad_locations, grad_weights)
    _launch(_backward_kernel, tensors, spatial_shapes)
    return grad_value.to(value.dtype), grad_locations, grad_weights
