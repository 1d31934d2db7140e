"""Swin Transformer, built from Detectron2's layers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from psf.backbone.freezing import freeze_parameters
from psf.config import backbone_maps
from psf.errors import UserError

__all__ = ["SwinBackbone", "build_psf_swin_backbone"]

PATCH_SIZE = 4


class SwinBackbone(Backbone):
    """Feature maps of a Swin Transformer, each with a layer norm of its own: res2 (stride 4), res3, res4, res5 (32).

    Blocks, parameter names and outputs equal those of Detectron2's SwinTransformer, and thus of the released model:
    maps are padded to multiples of the window, then shifted. Unlike that class, this one names its maps res2 to res5,
    builds no stage after the last map, has a `size_divisibility` (there it raises), needs no timm for drop path, and
    can be built on the meta device.

    Args:
        embed_dim: channels of the first stage; each later stage doubles them.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        window_size: side of the windows, in patches.
        drop_path: rate at the last block, from 0 at the first, linear over all blocks.
        out_features: names of the maps to return.
        in_channels: channels of the image.
        freeze: names of parameters or modules that are not trained.

    Raises:
        UserError: if Detectron2 has no Swin, the stages do not fit together, or a name in `out_features` or `freeze`
            is unknown.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        window_size: int,
        drop_path: float,
        out_features: Sequence[str],
        in_channels: int,
        freeze: Sequence[str],
    ):
        super().__init__()
        try:
            from detectron2.modeling.backbone.swin import BasicLayer, PatchEmbed, PatchMerging
        except ImportError as error:
            raise UserError(
                'MODEL.BACKBONE.NAME is "build_psf_swin_backbone", but this Detectron2 has no Swin Transformer (v0.6 '
                "does not): install a newer one, or use timm's Swin with build_psf_timm_backbone"
            ) from error
        dims = [embed_dim * 2**i for i in range(len(depths))]
        _check_stages(dims, depths, num_heads, drop_path)
        stages = {f"res{i + 2}": i for i in range(len(depths))}
        if unknown := [f for f in out_features if f not in stages]:
            raise UserError(f"MODEL.PSF.IN_FEATURES contains {unknown}; Swin of these depths has {list(stages)}")
        self._stage_outputs = {stages[f]: f for f in out_features}
        last = max(self._stage_outputs)

        self.patch_embed = PatchEmbed(PATCH_SIZE, in_channels, embed_dim, nn.LayerNorm)
        self.layers = nn.ModuleList()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.meshgrid")  # Detectron2 calls it without `indexing`
            for i in range(last + 1):
                merging = PatchMerging if i < last else None
                self.layers.append(BasicLayer(dims[i], depths[i], num_heads[i], window_size, downsample=merging))
        for i in sorted(self._stage_outputs):
            self.add_module(f"norm{i}", nn.LayerNorm(dims[i]))
        self.apply(_init_weights)
        self._set_drop_path(drop_path, sum(depths))
        freeze_parameters(self, freeze, key="MODEL.PSF.SWIN.FREEZE", name="Swin")
        self._out_features = list(out_features)
        self._out_feature_channels = {f: dims[stages[f]] for f in out_features}
        self._out_feature_strides = {f: PATCH_SIZE * 2 ** stages[f] for f in out_features}

    def _set_drop_path(self, rate: float, num_blocks: int) -> None:
        layers: list[Any] = list(self.layers)  # Detectron2's BasicLayer
        blocks = [block for layer in layers for block in layer.blocks]
        for position, block in enumerate(blocks):
            if position and rate:
                block.drop_path = StochasticDepth(rate * position / (num_blocks - 1), mode="row")

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) -> map name: (B, channels, H/stride, W/stride), rounded up."""
        patches = self.patch_embed(images)
        height, width = patches.shape[-2:]
        tokens = patches.flatten(2).transpose(1, 2)  # (B, D, h, w) -> (B, h*w, D)
        maps = {}
        for i, layer in enumerate(self.layers):
            output, here_height, here_width, tokens, height, width = layer(tokens, height, width)
            if i in self._stage_outputs:
                output = getattr(self, f"norm{i}")(output).unflatten(1, (here_height, here_width))
                maps[self._stage_outputs[i]] = output.permute(0, 3, 1, 2)  # (B, h, w, D) -> (B, D, h, w)
        return {f: maps[f] for f in self._out_features}


def _check_stages(dims: Sequence[int], depths: Sequence[int], num_heads: Sequence[int], drop_path: float) -> None:
    if len(depths) != len(num_heads) or not depths or any(dim % heads for dim, heads in zip(dims, num_heads)):
        raise UserError(
            f"MODEL.PSF.SWIN.NUM_HEADS is {list(num_heads)}, with DEPTHS {list(depths)}: expected one number per stage "
            f"in each; the heads must divide the stage's channels {list(dims)}"
        )
    if not 0 <= drop_path < 1:
        raise UserError(f"MODEL.PSF.SWIN.DROP_PATH is {drop_path}: expected a rate from 0 to below 1")


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@BACKBONE_REGISTRY.register()
def build_psf_swin_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SwinBackbone:
    """MODEL.BACKBONE.NAME "build_psf_swin_backbone": the Swin of MODEL.PSF.SWIN with the maps of `backbone_maps`."""
    node = cfg.MODEL.PSF.SWIN
    return SwinBackbone(
        embed_dim=node.EMBED_DIM,
        depths=node.DEPTHS,
        num_heads=node.NUM_HEADS,
        window_size=node.WINDOW_SIZE,
        drop_path=node.DROP_PATH,
        out_features=backbone_maps(cfg),
        in_channels=input_shape.channels,
        freeze=node.FREEZE,
    )
