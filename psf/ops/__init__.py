"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, equation 3), with nothing to compile."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from psf.ops.reference import ms_deform_attn_reference

__all__ = ["describe_implementation", "ms_deform_attn", "ms_deform_attn_reference"]


def ms_deform_attn(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Attend to a few sampled points on each level.

    Sampling is bilinear between pixel centres (pixel i covers [i, i + 1] / size); outside the map the value is 0.

    Args:
        value: (B, S, heads, D), the tokens of all levels, finest first; S = sum of h * w.
        spatial_shapes: (h, w) of each level, as Python ints.
        sampling_locations: (B, Q, heads, L, P, 2), x and y in units of the level's width and height; any real number.
        attention_weights: (B, Q, heads, L, P); they usually sum to 1 over L and P.

    Returns:
        (B, Q, heads * D).

    Raises:
        ValueError: if the levels do not add up to S, or the numbers of levels differ.
    """
    num_tokens = sum(h * w for h, w in spatial_shapes)
    if num_tokens != value.shape[1]:
        raise ValueError(f"spatial_shapes {list(spatial_shapes)} hold {num_tokens} tokens, value has {value.shape[1]}")
    if not len(spatial_shapes) == sampling_locations.shape[3] == attention_weights.shape[3]:
        raise ValueError(
            f"levels: {len(spatial_shapes)} in spatial_shapes, {sampling_locations.shape[3]} in sampling_locations, "
            f"{attention_weights.shape[3]} in attention_weights"
        )
    return ms_deform_attn_reference(value, spatial_shapes, sampling_locations, attention_weights)


def describe_implementation() -> str:
    """Which implementation of deformable attention runs here, and why (for `python -m psf.doctor`)."""
    return "reference (grid_sample), on every device: the only one so far"
