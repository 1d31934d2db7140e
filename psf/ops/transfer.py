"""Copies between the host and a device: many small tensors at once, and without waiting where possible.

A GPU works through a queue. The host waits for all of it when it reads a value, and when it copies from memory that is
not pinned. So values are read together (`download`), and copied from pinned memory (`upload`). Small tables that depend
on nothing but sizes are made once (`kept_table`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from psf.errors import UserError

__all__ = [
    "download",
    "download_arrays",
    "is_traced",
    "kept_table",
    "level_sizes",
    "upload",
    "upload_numbers",
    "upload_together",
]


def is_traced() -> bool:
    """Whether torch is tracing or exporting a graph that must run without psf; False under torch.compile."""
    return torch.jit.is_tracing() or torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()


def upload(x: Tensor, device: Any) -> Tensor:
    """The tensor on `device`; the host does not wait for the copy, unless the tensor comes from another device."""
    is_on_host = x.device.type == "cpu"
    if is_on_host and torch.device(device).type == "cuda":
        x = x.pin_memory()  # torch keeps this memory until the copy is done
    return x.to(device, non_blocking=is_on_host)  # of a copy to the host, nobody would notice the end


def upload_numbers(values: Sequence[Any] | np.ndarray, device: Any, dtype: torch.dtype) -> Tensor:
    """Numbers of the host as a tensor on `device`, as `upload`."""
    return upload(torch.as_tensor(values, dtype=dtype), device)


def upload_together(tensors: Sequence[Tensor], device: Any) -> list[Tensor]:
    """As `upload`, for tensors of one type and any shapes, in one copy."""
    if not tensors:
        return []
    flat = upload(torch.cat([x.flatten() for x in tensors]), device)
    return [part.view(x.shape) for part, x in zip(flat.split([x.numel() for x in tensors]), tensors, strict=True)]


def download(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies on the CPU of small tensors of one device, of any shapes and types; the host waits once for all."""
    if not tensors:
        return []
    if torch.jit.is_tracing():  # it cannot record views of bytes, and the copies are constants in it anyway
        return [x.detach().cpu() for x in tensors]
    # A clone, since a contiguous tensor of one element may have any stride, with which it has no view of bytes.
    flat = [x.detach().clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8) for x in tensors]
    parts = torch.cat(flat).cpu().split([len(x) for x in flat])
    # A copy starts at an address that suits its type.
    return [part.clone().view(x.dtype).view(x.shape) for part, x in zip(parts, tensors, strict=True)]


def download_arrays(*tensors: Tensor) -> list[np.ndarray]:
    """As `download`, as NumPy arrays; not for bfloat16, which NumPy does not have."""
    return [x.numpy() for x in download(tensors)]


def level_sizes(spatial_shapes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """(L, 2) width and height of each level (h, w), with the type and device of `like`. Do not change it in place."""
    sizes = tuple((w, h) for h, w in spatial_shapes)
    # A graph contains the numbers, and a tensor of another kind must not be kept for later calls.
    if is_traced() or torch.compiler.is_compiling() or type(like) is not Tensor:
        return like.new_tensor(sizes)
    return kept_table(sizes, like.dtype, like.device)


@functools.lru_cache(maxsize=1024)  # a few dozen bytes for each shape of a batch
def kept_table(rows: tuple[tuple[int, ...], ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers as a tensor on `device`, as `upload`; made once and kept. Do not change it in place.

    Raises:
        UserError: in the capture of a CUDA graph, if the table is new: only replays of the graph would fill it.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise UserError(
            "a CUDA graph is captured for image sizes that the model has not had yet: run the model once with these "
            "sizes before the capture"
        )
    with torch.inference_mode(False):  # a tensor of inference mode could not serve training
        return upload(torch.tensor(rows, dtype=dtype), device)
