"""Any timm model that gives feature maps, as a Detectron2 backbone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from psf.backbone.freezing import freeze_parameters

__all__ = ["TimmBackbone", "build_psf_timm_backbone"]


class TimmBackbone(Backbone):
    """Feature maps of a timm model, named by their stride: res2 (4), res3 (8), res4 (16), res5 (32).

    Never fetches weights: they come with MODEL.WEIGHTS.

    Args:
        name: timm's name of the model.
        out_features: names of the maps to give.
        in_channels: channels of the image.
        frozen_norm: batch norms keep their statistics and affine parameters.
        drop_path: rate at the last block, from 0 at the first.
        freeze: beginnings of names of parameters that are not trained.

    Raises:
        ValueError: if timm does not know the model, it lacks a map, it has no drop path and one is asked for, or a name
            in `freeze` begins no parameter.
    """

    def __init__(
        self,
        name: str,
        *,
        out_features: Sequence[str],
        in_channels: int,
        frozen_norm: bool,
        drop_path: float,
        freeze: Sequence[str],
    ):
        super().__init__()
        import timm  # takes seconds, and only this backbone needs it
        from timm.layers import freeze_batch_norm_2d

        if not timm.is_model(name):
            near = timm.list_models(f"*{name.split('_')[-1]}*")[:5]
            raise ValueError(f'MODEL.PSF.TIMM.NAME is "{name}", which timm does not know; near: {near}')
        arguments: dict[str, Any] = {"features_only": True, "pretrained": False, **_any_size(name)}
        info = timm.create_model(name, **arguments).feature_info
        indices = {_map_name(stride): i for i, stride in enumerate(info.reduction())}
        missing = [f for f in out_features if f not in indices]
        if missing:
            raise ValueError(f"MODEL.PSF.IN_FEATURES asks for {missing}; {name} gives {sorted(indices)}")
        self.model = _create_model(
            name,
            drop_path,
            in_chans=in_channels,
            out_indices=tuple(indices[f] for f in out_features),
            **arguments,
        )
        self._channels_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"  # Swin
        if frozen_norm:
            freeze_batch_norm_2d(self.model)
        freeze_parameters(self.model, freeze, key="MODEL.PSF.TIMM.FREEZE", name=name)
        self._out_features = list(out_features)
        self._out_feature_channels = {f: info.channels()[indices[f]] for f in out_features}
        self._out_feature_strides = {f: info.reduction()[indices[f]] for f in out_features}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) -> map name: (B, channels, H/stride, W/stride)."""
        maps = self.model(images)
        if self._channels_last:
            maps = [x.permute(0, 3, 1, 2) for x in maps]
        return dict(zip(self._out_features, maps, strict=True))


def _create_model(name: str, drop_path: float, **arguments: Any) -> nn.Module:
    """timm's model with this rate of drop path, be it 0 where timm's default is not; some models do not have it."""
    import timm
    from timm.layers import DropPath

    model: nn.Module
    try:
        model = timm.create_model(name, drop_path_rate=drop_path, **arguments)
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        model = timm.create_model(name, **arguments)
    if drop_path and not any(isinstance(module, DropPath) for module in model.modules()):
        raise ValueError(f"MODEL.PSF.TIMM.DROP_PATH is {drop_path}, but {name} has no drop path: set it to 0.0")
    return model


def _map_name(stride: int) -> str:
    return f"res{int(math.log2(stride))}"


def _any_size(name: str) -> dict[str, bool]:
    """Swin is bound to the image size that it was pretrained with, unless told otherwise."""
    return {"strict_img_size": False} if name.startswith(("swin_", "swinv2_")) else {}


@BACKBONE_REGISTRY.register()
def build_psf_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """MODEL.BACKBONE.NAME "build_psf_timm_backbone": the timm model of MODEL.PSF.TIMM, maps MODEL.PSF.IN_FEATURES."""
    node = cfg.MODEL.PSF.TIMM
    return TimmBackbone(
        node.NAME,
        out_features=cfg.MODEL.PSF.IN_FEATURES,
        in_channels=input_shape.channels,
        frozen_norm=node.FROZEN_NORM,
        drop_path=node.DROP_PATH,
        freeze=node.FREEZE,
    )
