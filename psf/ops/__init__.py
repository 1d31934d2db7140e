"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, equation 3), without compiled extensions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from psf.errors import UserError
from psf.ops.dispatch import (
    AUTO,
    IMPLEMENTATIONS,
    Work,
    check_implementation,
    choose,
    describe_implementation,
    log_once,
    used_implementations,
)
from psf.ops.operator import attend_by
from psf.ops.reference import ms_deform_attn_reference
from psf.ops.transfer import is_traced

__all__ = [
    "AUTO",
    "IMPLEMENTATIONS",
    "check_implementation",
    "describe_implementation",
    "is_traced",
    "ms_deform_attn",
    "ms_deform_attn_reference",
    "used_implementations",
]


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    implementation: str | None = None,
    configured: str = AUTO,
    deterministic: bool | None = None,
) -> Tensor:
    """Attend to a few sampled points on each level.

    Sampling is bilinear between pixel centers (pixel i covers [i, i + 1] / size); outside the map the value is 0.
    Arithmetic is in float32 at least, and in float64 if value or locations are.

    Args:
        value: (B, S, heads, D), the tokens of all levels, finest first; S = sum of h * w.
        spatial_shapes: (h, w) of each level, as Python ints.
        sampling_locations: (B, Q, heads, L, P, 2), x and y in units of the level's width and height; any real number.
            Pass them as float32: half precision would misplace them by whole pixels.
        attention_weights: (B, Q, heads, L, P); they usually sum to 1 over L and P.
        implementation: "reference" (grid_sample), "bag" (embedding_bag), "triton", or "auto": the fastest for the
            device and size, which the first call of each kind measures on a GPU. None: the value of the environment
            variable PSF_MSDA, else `configured`. Tracing and export always use the reference, so that their graphs
            load without psf. torch.compile and CUDA graphs use what was measured before, else the reference.
        configured: the key MODEL.PSF.MSDA of the model, with the same values.
        deterministic: the gradients must be bit-identical in each run; None: as set by
            torch.use_deterministic_algorithms.

    Returns:
        (B, Q, heads * D), of value's type.

    Raises:
        UserError: if the levels do not add up to S, the numbers of levels differ, or the implementation is unknown
            or cannot run here.
    """
    num_tokens = sum(h * w for h, w in spatial_shapes)
    if num_tokens != value.shape[1]:
        raise UserError(f"spatial_shapes {list(spatial_shapes)} have {num_tokens} tokens, value has {value.shape[1]}")
    if not len(spatial_shapes) == sampling_locations.shape[3] == attention_weights.shape[3]:
        raise UserError(
            f"levels: {len(spatial_shapes)} in spatial_shapes, {sampling_locations.shape[3]} in sampling_locations, "
            f"{attention_weights.shape[3]} in attention_weights"
        )
    precision = torch.promote_types(torch.promote_types(value.dtype, sampling_locations.dtype), torch.float32)
    sampling_locations = sampling_locations.to(precision)
    if is_traced():
        return ms_deform_attn_reference(value, spatial_shapes, sampling_locations, attention_weights)
    if deterministic is None:
        deterministic = torch.are_deterministic_algorithms_enabled()
    work = Work.of(value, sampling_locations, attention_weights, is_deterministic=deterministic)
    choice = choose(work, implementation, configured)
    if not torch.compiler.is_compiling():
        log_once(choice)
    inputs = (value, spatial_shapes, sampling_locations, attention_weights)
    return attend_by(choice.name, *inputs, is_deterministic=deterministic)
