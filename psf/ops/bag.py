"""Deformable attention as sums over bags of table rows, which is fast on a CPU.

Each head of each query is one bag: the four pixels around every sampled point, each with a weight. `embedding_bag` adds
them up and never stores the sampled values. Backward computes the reverse sums: sorted by pixel, every pixel is a bag
of queries. No result depends on the order of threads.

Pixels outside the map need no special case. A coordinate x uses the two nearest pixels inside the map, and pixel i has
the weight max(0, 1 - |x - i|), which is 0 if it is more than one pixel away.
An infinite location adds 0, here and in the Triton kernels; in the reference it gives NaN.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from psf.ops.transfer import kept_table

__all__ = ["bag_backward", "bag_forward"]

_BAGS_AT_ONCE = 8192  # with 4 levels and 4 points, all temporaries take about 20 MB


class _Levels(NamedTuple):
    """Constants of the levels, in the layout of the points of one query.

    The two axes, x and y, come first, so that each is one block of memory.
    """

    size: Tensor  # (2, 1, heads, L, P) width and height
    last: Tensor  # (2, 1, heads, L, P) the last coordinate with a next pixel, 0 if there is none
    has_next: Tensor  # (2, 1, heads, L, P) 1 where the level is at least two pixels wide or high, else 0
    zero: Tensor  # (2, 1, heads, L, P)
    corners: Tensor  # (heads, 4, L * P) int32: table rows of the level's first pixel and of its three neighbors


class _Points(NamedTuple):
    """Pixels and weights of the points of n queries."""

    cell: Tensor  # (n, heads, L * P) int32: the upper left pixel, counted from the first pixel of its level
    offset: Tensor  # (2, n, heads, L, P) from that pixel, in pixels; in [0, 1] inside the map
    near: Tensor  # (2, n, heads, L, P) weights of the left and the upper pixel
    far: Tensor  # (2, n, heads, L, P) weights of the right and the lower pixel


def bag_forward(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Arguments and result as in `psf.ops.ms_deform_attn`; computed in the precision of the locations."""
    batch, _, heads, dim = value.shape
    queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    levels = _describe_levels(spatial_shapes, heads, points, sampling_locations)
    output = value.new_empty(batch, queries, heads * dim)
    for image in range(batch):
        table = value[image].reshape(-1, dim).to(sampling_locations.dtype)  # (S * heads, D)
        for part in _parts(queries, max(1, _BAGS_AT_ONCE // heads)):
            located = _locate(sampling_locations[image, part], levels)
            weights = _corner_weights(located, attention_weights[image, part])
            index = _table_rows(located, levels)
            bags = F.embedding_bag(index.flatten(1), table, mode="sum", per_sample_weights=weights.flatten(1))
            output[image, part] = bags.view(-1, heads * dim)
    return output


def _parts(total: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, total, size))


def _describe_levels(shapes: Sequence[tuple[int, int]], heads: int, points: int, like: Tensor) -> _Levels:
    """The constants of the levels for a table of (S * heads) rows, in the type and on the device of `like`."""
    sizes = kept_table(tuple(zip(*shapes)), like.dtype, like.device).flip(0)  # (2, L), width first
    sizes = sizes[:, None, None, :, None].expand(-1, -1, heads, -1, points).contiguous()  # once, not at each use
    corners, start = [], 0
    for (h, w), shifts in zip(shapes, _corner_shifts(shapes, heads)):
        corners.append(tuple(start + shift for shift in shifts))
        start += h * w * heads
    rows = kept_table(tuple(corners), torch.int32, like.device).t()  # (4, L)
    rows = rows[:, :, None] + torch.arange(heads, dtype=torch.int32, device=like.device)[:, None, None, None]
    return _Levels(
        size=sizes,
        last=(sizes - 2).clamp_(min=0),
        has_next=(sizes > 1).to(like.dtype),
        zero=torch.zeros_like(sizes),
        corners=rows.expand(-1, -1, -1, points).flatten(2),
    )


def _corner_shifts(shapes: Sequence[tuple[int, int]], heads: int) -> Iterator[tuple[int, int, int, int]]:
    """Offsets, per level, from the table row of a pixel to itself and its right, lower and lower right neighbors.

    0 if the level is one pixel wide or high: the neighbor does not exist, and its weight will be 0.
    """
    for h, w in shapes:
        right, below = heads * (w > 1), heads * w * (h > 1)
        yield 0, right, below, right + below


def _locate(locations: Tensor, levels: _Levels) -> _Points:
    """(n, heads, L, P, 2) locations -> pixels and their weights along each axis."""
    offset = locations.movedim(-1, 0).clone(memory_format=torch.contiguous_format)
    offset.mul_(levels.size).sub_(0.5)  # pixel 0 has its center at 0
    first = offset.floor().clamp_(levels.zero, levels.last)
    offset -= first
    near = offset.abs().neg_().add_(1).relu_()
    far = (offset - 1).abs_().neg_().add_(1).clamp_(levels.zero, levels.has_next)
    # NaN becomes some pixel, with NaN as its weight. Exact in float32 up to 2**24 pixels per level.
    cell = first[0].addcmul_(first[1], levels.size[0]).to(torch.int32).clamp_(min=0)
    return _Points(cell.flatten(2), offset, near, far)


def _table_rows(located: _Points, levels: _Levels) -> Tensor:
    """(n * heads, 4, L * P) int32: the rows of the four pixels around each point."""
    heads = levels.corners.shape[0]
    return (located.cell.unsqueeze(2) * heads + levels.corners).flatten(0, 1)


def _corner_weights(located: _Points, attention: Tensor) -> Tensor:
    """(n * heads, 4, L * P) weights of the upper left, upper right, lower left and lower right pixel of each point."""
    _, n, heads, num_levels, points = located.near.shape
    weights = located.near.new_empty(n, heads, 4, num_levels, points)
    for row, vertical in enumerate((located.near[1], located.far[1])):
        vertical = vertical * attention
        for column, horizontal in enumerate((located.near[0], located.far[0])):
            torch.mul(vertical, horizontal, out=weights[:, :, 2 * row + column])
    return weights.flatten(3).flatten(0, 1)


def bag_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights, each in the precision of its tensor.

    Processes a few heads of one image at a time, so that their tables fit into the cache and memory stays small.
    """
    batch, _, heads, dim = value.shape
    queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    together = max(1, min(heads, _BAGS_AT_ONCE // max(1, queries)))
    while heads % together:
        together -= 1
    levels = _describe_levels(spatial_shapes, together, points, sampling_locations)
    precision = sampling_locations.dtype
    grad_output = grad_output.view(batch, queries, heads, dim)
    grad_value, grad_locations, grad_attention = (
        torch.empty_like(x) for x in (value, sampling_locations, attention_weights)
    )
    for image, part in product(range(batch), _parts(heads, together)):
        here = (image, slice(None), part)
        table = value[here].to(precision).reshape(-1, dim).contiguous()  # (S * heads, D)
        grad_bags = grad_output[here].to(precision).reshape(-1, dim).contiguous()  # (Q * heads, D)
        attention = attention_weights[here].to(precision)
        located = _locate(sampling_locations[here], levels)
        weights = _corner_weights(located, attention)
        index = _table_rows(located, levels)
        rows = _grad_table(grad_bags, index, weights, spatial_shapes, together)
        grad_value[here] = rows.view(-1, together, dim)
        products = _products(grad_bags, table, index.flatten(1))
        products = products.view(queries, together, 2, 2, *attention.shape[2:])
        along_axes, grad_attention[here] = _grad_points(products, located, levels)
        grad_locations[here] = (along_axes * attention).movedim(0, -1)
    return grad_value, grad_locations, grad_attention


def _products(rows: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """(n, K) inner products of row i of (n, D) `rows` with row index[i, k] of `table`."""
    n, k = index.shape
    if rows.device.type != "cpu":
        return torch.cat([(rows[part, None] * table[index[part]]).sum(-1) for part in _parts(n, _BAGS_AT_ONCE)])
    # Not a valid sparse matrix: a row may hold a pixel twice and in any order, which the kernel accepts. But torch
    # rejects more entries than columns.
    if len(table) < k:
        table = F.pad(table, (0, 0, 0, k - len(table)))
    starts = torch.arange(0, n * k + 1, k, dtype=torch.int32)
    size = (n, len(table))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        pattern = torch.sparse_csr_tensor(starts, index.flatten(), rows.new_zeros(n * k), size, check_invariants=False)
    return torch.sparse.sampled_addmm(pattern, rows, table.t(), beta=0, out=pattern).values().view(n, k)


def _grad_table(
    grad_bags: Tensor, index: Tensor, weights: Tensor, shapes: Sequence[tuple[int, int]], heads: int
) -> Tensor:
    """(S * heads, D): each pixel's sum over the queries that sampled it, from index and weights (Q * heads, 4, L * P).

    The points are sorted only by their upper left pixel. The sums of the other three pixels use the same bags with
    other weights, shifted right and down.
    """
    rows, order = index[:, 0].flatten().sort(stable=True)
    num_rows = heads * sum(h * w for h, w in shapes)
    starts = torch.searchsorted(rows, torch.arange(num_rows, dtype=rows.dtype, device=rows.device), out_int32=True)
    queries = (order // index.shape[-1]).to(torch.int32)
    total = grad_bags.new_zeros(num_rows, grad_bags.shape[1])
    for corner in range(4):
        by_row = weights[:, corner].flatten().index_select(0, order)
        sums = F.embedding_bag(queries, grad_bags, starts, mode="sum", per_sample_weights=by_row)
        start = 0
        for (h, w), shift in zip(shapes, _corner_shifts(shapes, heads)):
            end = start + h * w * heads
            total[start + shift[corner] : end] += sums[start : end - shift[corner]]
            start = end
    return total


def _grad_points(products: Tensor, located: _Points, levels: _Levels) -> tuple[Tensor, Tensor]:
    """Gradients of locations and weights from the (n, heads, 2, 2, L, P) products of corners and output gradient.

    Returns:
        (2, n, heads, L, P) gradient of the locations for attention weights of 1, and (n, heads, L, P) of the weights.
    """
    (near_x, near_y), (far_x, far_y) = located.near, located.far
    near, far = torch.empty_like(located.near), torch.empty_like(located.far)
    for column, total in enumerate((near[0], far[0])):
        torch.mul(products[:, :, 0, column], near_y, out=total).addcmul_(products[:, :, 1, column], far_y)
    for row, total in enumerate((near[1], far[1])):
        torch.mul(products[:, :, row, 0], near_x, out=total).addcmul_(products[:, :, row, 1], far_x)
    grad_attention = (near[1] * near_y).addcmul_(far[1], far_y)
    # Slopes of max(0, 1 - |x - i|); at a kink, the slope to its right.
    steps = located.offset.floor()
    before, inside, after = (torch.eq(steps, step, out=torch.empty_like(steps)) for step in (-1, 0, 1))
    near *= before.sub_(inside)
    far *= inside.sub_(after).mul_(levels.has_next)
    return near.add_(far).mul_(levels.size), grad_attention
