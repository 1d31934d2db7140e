"""One finer level for the mask decoders alone: small things need masks finer than C3."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psf.modeling.neck import conv_and_norm
from psf.modeling.pixel_encoder import resize_padding_mask, valid_ratio
from psf.modeling.position_encoding import sine_position_encoding
from psf.predictions import FeatureTokens

__all__ = ["FineLevel"]


class FineLevel(nn.Module):
    """A backbone map finer than those of the encoder, with the encoder's finest level added to it.

    As feature pyramids do (and the pixel decoders of Mask2Former): the map is projected, the finest encoded level
    upsampled and added, and a 3x3 convolution follows. The deformable layers, whose cost is that of the tokens, do not
    see it.

    Args:
        in_channels: of the backbone's map.
        dim: D.
    """

    def __init__(self, *, in_channels: int, dim: int):
        super().__init__()
        self.lateral = conv_and_norm(in_channels, dim, kernel_size=1)
        self.output = conv_and_norm(dim, dim, kernel_size=3)
        self.level_embed = nn.Parameter(torch.randn(dim))

    def forward(self, feature: Tensor, encoded: FeatureTokens, padding_mask: Tensor | None) -> FeatureTokens:
        """Put the new level before the encoded ones.

        Args:
            feature: (B, C, h, w) of the backbone.
            encoded: L levels; the first is the one that is added.
            padding_mask: (B, H, W) of the image batch; None if no image is padded.

        Returns:
            L + 1 levels.
        """
        (height, width), size = encoded.spatial_shapes[0], feature.shape[2:]
        coarse = encoded.tokens[:, : height * width].transpose(1, 2).unflatten(2, (height, width))  # (B, D, h, w)
        coarse = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
        fine = F.relu(self.output(self.lateral(feature) + coarse))
        mask = resize_padding_mask(padding_mask, feature)
        position = sine_position_encoding(mask, fine.shape[1]).to(fine.dtype) + self.level_embed[:, None, None]
        ratios = valid_ratio(mask)[:, None].to(encoded.valid_ratios)
        padding = None if encoded.padding_mask is None else torch.cat((mask.flatten(1), encoded.padding_mask), dim=1)
        return FeatureTokens(
            tokens=torch.cat((fine.flatten(2).transpose(1, 2), encoded.tokens), dim=1),
            position=torch.cat((position.flatten(2).transpose(1, 2), encoded.position), dim=1),
            spatial_shapes=[(size[0], size[1]), *encoded.spatial_shapes],
            padding_mask=padding,
            valid_ratios=torch.cat((ratios, encoded.valid_ratios), dim=1),
        )
