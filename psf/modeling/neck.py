"""Project the backbone's maps to feature levels of D channels (section 3.2), with optional finer maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from psf.errors import UserError
from psf.modeling.position_encoding import resize_padding_mask, sine_position_encoding, valid_ratio
from psf.structures import MASK_FEATURE_DIM, FeatureTokens, MaskFeatures

__all__ = ["FineLevel", "MaskFeatureMap", "Neck"]

NUM_GROUPS = 32  # groups of the GroupNorm after each projection
MASK_FEATURE_GROUPS = 8  # groups of the GroupNorms of `MaskFeatures`


class Neck(nn.Module):
    """A 1x1 convolution and GroupNorm per backbone map; coarser levels by strided 3x3 convolutions of the last map.

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
            raise UserError(
                f"MODEL.PSF.NUM_FEATURE_LEVELS is {num_levels}, fewer than the {len(in_features)} maps of "
                f"MODEL.PSF.IN_FEATURES {list(in_features)}"
            )
        if dim % NUM_GROUPS:
            raise UserError(f"MODEL.PSF.HIDDEN_DIM is {dim}: expected a multiple of {NUM_GROUPS}")
        missing = [name for name in in_features if name not in input_shape]
        if missing:
            raise UserError(f"MODEL.PSF.IN_FEATURES contains {missing}; the backbone has {sorted(input_shape)}")
        strides = [input_shape[name].stride for name in in_features]
        if any(finer >= coarser for finer, coarser in pairwise(strides)):
            raise UserError(
                f"MODEL.PSF.IN_FEATURES is {list(in_features)}, with strides {strides}: expected the finest map first, "
                "and each once"
            )
        self.in_features = list(in_features)
        channels = [input_shape[name].channels for name in in_features]
        self.input_proj = nn.ModuleList(_conv_and_norm(c, dim, kernel_size=1) for c in channels)
        extra_channels = [channels[-1]] + [dim] * (num_extra - 1)
        self.extra_input_proj = nn.ModuleList(
            _conv_and_norm(c, dim, kernel_size=3, stride=2) for c in extra_channels[:num_extra]
        )

    def forward(self, features: Mapping[str, Tensor]) -> list[Tensor]:
        """Backbone maps by name -> `num_levels` maps (B, D, h, w), finest first."""
        maps = [features[name] for name in self.in_features]
        levels = [project(x) for project, x in zip(self.input_proj, maps, strict=True)]
        coarser = maps[-1]
        for project in self.extra_input_proj:
            coarser = project(coarser)
            levels.append(coarser)
        return levels


class FineLevel(nn.Module):
    """A level finer than those of the encoder: a backbone map plus the encoder's finest level.

    Small things need masks finer than C3. As in feature pyramids (and in Mask2Former's pixel decoder), the map is
    projected, the finest encoded level is upsampled and added, and a 3x3 convolution follows. The deformable layers,
    whose cost grows with the tokens, do not process this level.

    Args:
        in_channels: channels of the backbone's map.
        dim: D.
    """

    def __init__(self, *, in_channels: int, dim: int):
        super().__init__()
        self.lateral = _conv_and_norm(in_channels, dim, kernel_size=1)
        self.output = _conv_and_norm(dim, dim, kernel_size=3)
        self.level_embed = nn.Parameter(torch.randn(dim))

    def forward(self, feature: Tensor, encoded: FeatureTokens, padding_mask: Tensor | None) -> FeatureTokens:
        """Put the new level before the encoded ones.

        Args:
            feature: (B, C, h, w) of the backbone.
            encoded: L levels; the first is added to the map.
            padding_mask: (B, H, W) of the image batch; None if no image is padded.

        Returns:
            L + 1 levels.
        """
        (height, width), size = encoded.spatial_shapes[0], feature.shape[2:]
        coarse = encoded.tokens[:, : height * width].transpose(1, 2).unflatten(2, (height, width))  # (B, D, h, w)
        coarse = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
        fine = F.relu(self.output(self.lateral(feature) + coarse))
        mask = resize_padding_mask(padding_mask, feature)
        pos_embed = sine_position_encoding(mask, fine.shape[1]).to(fine.dtype) + self.level_embed[:, None, None]
        ratios = valid_ratio(mask)[:, None].to(encoded.valid_ratios)
        padding = None if encoded.padding_mask is None else torch.cat((mask.flatten(1), encoded.padding_mask), dim=1)
        return FeatureTokens(
            tokens=torch.cat((fine.flatten(2).transpose(1, 2), encoded.tokens), dim=1),
            pos_embed=torch.cat((pos_embed.flatten(2).transpose(1, 2), encoded.pos_embed), dim=1),
            spatial_shapes=[(size[0], size[1]), *encoded.spatial_shapes],
            padding_mask=padding,
            valid_ratios=torch.cat((ratios, encoded.valid_ratios), dim=1),
        )


class MaskFeatureMap(nn.Module):
    """Makes `MaskFeatures` with few channels from a backbone map finer than all levels, plus the finest level.

    As in feature pyramids, both are projected and added, and a 3x3 convolution follows. Few channels keep this cheap at
    the size of the map.

    Args:
        in_channels: channels of the backbone's map.
        dim: D.
    """

    def __init__(self, *, in_channels: int, dim: int):
        super().__init__()
        self.lateral = _conv_and_norm(in_channels, MASK_FEATURE_DIM, kernel_size=1, num_groups=MASK_FEATURE_GROUPS)
        self.top_down = nn.Conv2d(dim, MASK_FEATURE_DIM, 1)
        self.output = _conv_and_norm(MASK_FEATURE_DIM, MASK_FEATURE_DIM, kernel_size=3, num_groups=MASK_FEATURE_GROUPS)

    def forward(self, feature: Tensor, memory: FeatureTokens, padding_mask: Tensor | None) -> FeatureTokens:
        """Add the mask features to the levels.

        Args:
            feature: (B, C, h, w) of the backbone.
            memory: levels for the mask decoders; the first is added to the map.
            padding_mask: (B, H, W) of the image batch; None if no image is padded.

        Returns:
            `memory` with `mask_features` (B, 32, h, w).
        """
        (height, width), size = memory.spatial_shapes[0], feature.shape[2:]
        coarse = memory.tokens[:, : height * width].transpose(1, 2).unflatten(2, (height, width))  # (B, D, h, w)
        coarse = F.interpolate(self.top_down(coarse), size=size, mode="bilinear", align_corners=False)
        values = F.relu(self.output(F.relu(self.lateral(feature) + coarse)))
        padding = None if padding_mask is None else resize_padding_mask(padding_mask, feature)
        return memory._replace(mask_features=MaskFeatures(values, padding))


def _conv_and_norm(
    in_channels: int, dim: int, *, kernel_size: int, stride: int = 1, num_groups: int = NUM_GROUPS
) -> nn.Sequential:
    """A convolution without bias, and a GroupNorm."""
    conv = nn.Conv2d(in_channels, dim, kernel_size, stride, padding=kernel_size // 2, bias=False)
    nn.init.xavier_uniform_(conv.weight)
    return nn.Sequential(conv, nn.GroupNorm(num_groups, dim))
