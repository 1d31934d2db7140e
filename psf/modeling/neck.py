"""Projection of the backbone's maps to D channels each (section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from detectron2.layers import ShapeSpec
from torch import Tensor, nn

__all__ = ["Neck", "conv_and_norm"]

NUM_GROUPS = 32  # of the GroupNorm after each projection


class Neck(nn.Module):
    """A 1x1 convolution and GroupNorm per backbone map; coarser levels by a strided 3x3 one on the backbone's last map.

    Args:
        input_shape: channels of each backbone map.
        in_features: names of the maps, finest first.
        dim: D, a multiple of 32.
        num_levels: levels to make, at least len(in_features).
    """

    def __init__(self, *, input_shape: Mapping[str, ShapeSpec], in_features: Sequence[str], dim: int, num_levels: int):
        super().__init__()
        num_extra = num_levels - len(in_features)
        if num_extra < 0:
            raise ValueError(
                f"MODEL.PSF.NUM_FEATURE_LEVELS is {num_levels}, fewer than the {len(in_features)} maps of "
                f"MODEL.PSF.IN_FEATURES {list(in_features)}"
            )
        if dim % NUM_GROUPS:
            raise ValueError(f"MODEL.PSF.HIDDEN_DIM is {dim}: expected a multiple of {NUM_GROUPS}")
        missing = [name for name in in_features if name not in input_shape]
        if missing:
            raise ValueError(f"MODEL.PSF.IN_FEATURES asks for {missing}; the backbone gives {sorted(input_shape)}")
        strides = [input_shape[name].stride for name in in_features]
        if any(finer >= coarser for finer, coarser in pairwise(strides)):
            raise ValueError(
                f"MODEL.PSF.IN_FEATURES is {list(in_features)}, maps of strides {strides}: expected the finest first, "
                "and each once"
            )
        self.in_features = list(in_features)
        channels = [input_shape[name].channels for name in in_features]
        self.projections = nn.ModuleList(conv_and_norm(c, dim, kernel_size=1) for c in channels)
        extra_channels = [channels[-1]] + [dim] * (num_extra - 1)
        self.extra_projections = nn.ModuleList(
            conv_and_norm(c, dim, kernel_size=3, stride=2) for c in extra_channels[:num_extra]
        )

    def forward(self, features: Mapping[str, Tensor]) -> list[Tensor]:
        """Backbone maps by name -> `num_levels` maps (B, D, h, w), finest first."""
        maps = [features[name] for name in self.in_features]
        levels = [project(x) for project, x in zip(self.projections, maps, strict=True)]
        coarser = maps[-1]
        for project in self.extra_projections:
            coarser = project(coarser)
            levels.append(coarser)
        return levels


def conv_and_norm(in_channels: int, dim: int, *, kernel_size: int, stride: int = 1) -> nn.Sequential:
    """A convolution without bias, and its GroupNorm."""
    conv = nn.Conv2d(in_channels, dim, kernel_size, stride, padding=kernel_size // 2, bias=False)
    nn.init.xavier_uniform_(conv.weight)
    return nn.Sequential(conv, nn.GroupNorm(NUM_GROUPS, dim))
