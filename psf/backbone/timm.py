"""Any timm model that gives feature maps, as a Detectron2 backbone."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from psf.backbone.freezing import freeze_parameters
from psf.config import backbone_maps
from psf.errors import UserError

__all__ = ["TimmBackbone", "build_psf_timm_backbone"]

logger = logging.getLogger(__name__)

# Sides that no stride divides, on either side of the halves of 32: what rounds down gives itself away.
_ODD_SIZES = ((97, 131), (47, 62))


class TimmBackbone(Backbone):
    """Feature maps of a timm model, named by their stride: res2 (4), res3 (8), res4 (16), res5 (32).

    Where the model's own maps would not have sides of side/stride, rounded up, for every image (ConvNeXt cuts the rest
    off, Swin refuses it, MaxViT wants whole windows), `size_divisibility` asks for images with which they do.

    Args:
        name: timm's name of the model.
        out_features: names of the maps to give.
        in_channels: channels of the image.
        frozen_norm: batch norms keep their statistics and affine parameters.
        drop_path: rate at the last block, from 0 at the first.
        freeze: names of parameters, and of modules whose parameters, are not trained; nor do statistics of batch norms
            in them change.
        pretrained: fetch timm's weights, from the network or timm's cache. False: they come with MODEL.WEIGHTS.

    Parameters that lead to none of the maps (of HRNet's branches) are not trained: DDP would wait for their gradients.

    Raises:
        UserError: if timm does not know the model or has no weights of it, they cannot be fetched, it lacks a map or
            its maps do not fit, `drop_path` is no rate or the model has none, or a name in `freeze` is of no parameter.
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
        pretrained: bool,
    ):
        super().__init__()
        import timm  # takes seconds, and only this backbone needs it
        from timm.layers import freeze_batch_norm_2d

        if not 0 <= drop_path < 1:
            raise UserError(f"MODEL.PSF.TIMM.DROP_PATH is {drop_path}: expected a rate from 0 to below 1")
        if not timm.is_model(name):
            near = difflib.get_close_matches(name, timm.list_models())
            raise UserError(f'MODEL.PSF.TIMM.NAME is "{name}", which timm does not know; near: {near}')
        arguments: dict[str, Any] = {"features_only": True, **_any_size(name)}
        try:
            with torch.device("meta"):  # its outline: no memory, hardly any time
                outline: Any = timm.create_model(name, pretrained=False, **arguments).eval()
        except RuntimeError as error:  # an unknown tag, or a model that has no maps to give
            raise UserError(
                f'MODEL.PSF.TIMM.NAME is "{name}", and timm makes no feature maps of it: {error}'
            ) from error
        info = outline.feature_info
        indices = {_map_name(stride): i for i, stride in enumerate(info.reduction())}
        missing = [f for f in out_features if f not in indices]
        if missing:
            raise UserError(
                f"MODEL.PSF.IN_FEATURES, FINE_FEATURE and MASK_FEATURE ask for {missing}; {name} gives "
                f"{sorted(indices)}"
            )
        self._maps_in_order = sorted(out_features, key=indices.__getitem__)  # timm's, whatever was asked for
        self._size_divisibility = _size_divisibility(outline, name)
        if pretrained:
            _announce_weights(name)
        self.model = _create_model(
            name,
            drop_path,
            pretrained=pretrained,
            in_chans=in_channels,
            out_indices=tuple(indices[f] for f in self._maps_in_order),
            **arguments,
        )
        if frozen_norm:
            freeze_batch_norm_2d(self.model)
        freeze_parameters(self.model, freeze, key="MODEL.PSF.TIMM.FREEZE", name=name)
        _freeze_statistics(self.model)
        unused = _unused_parameters(outline, [indices[f] for f in out_features], self._size_divisibility or 64)
        for parameter_name, parameter in self.model.named_parameters():
            if parameter_name in unused:
                parameter.requires_grad_(False)
        self._out_features = list(out_features)
        self._out_feature_channels = {f: info.channels()[indices[f]] for f in out_features}
        self._out_feature_strides = {f: info.reduction()[indices[f]] for f in out_features}

    @property
    def size_divisibility(self) -> int:
        """Images are to be padded to a multiple of it; 0: to nothing."""
        return self._size_divisibility

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) -> map name: (B, channels, H/stride, W/stride), rounded up."""
        return dict(zip(self._maps_in_order, _maps(self.model, images), strict=True))


def _maps(model: nn.Module, images: Tensor) -> list[Tensor]:
    """timm's maps, channels first; Swin has them last."""
    maps: list[Tensor] = model(images)
    if getattr(model, "output_fmt", "NCHW") == "NHWC":
        maps = [x.permute(0, 3, 1, 2) for x in maps]
    return maps


def _size_divisibility(outline: Any, name: str) -> int:
    """The smallest of 0, the largest stride and the pretraining image size whose multiples give maps that fit."""
    import timm

    pretraining = timm.get_pretrained_cfg(name)
    stride, side = max(outline.feature_info.reduction()), pretraining.input_size[-1] if pretraining else 0
    for divisibility in (0, stride, side):
        sizes = ((divisibility, 2 * divisibility), (3 * divisibility, divisibility)) if divisibility else _ODD_SIZES
        if all(_maps_fit(outline, size) for size in sizes):
            return divisibility
    raise UserError(
        f'MODEL.PSF.TIMM.NAME is "{name}", which takes images of one size alone, or whose maps do not have the sides '
        "that their strides say; choose another model"
    )


@torch.no_grad()
def _maps_fit(outline: Any, size: tuple[int, int]) -> bool:
    """Whether a model on the meta device takes such an image, and each map has sides of side/stride, rounded up."""
    try:
        maps = _maps(outline, torch.zeros(1, 3, *size, device="meta"))
    except (RuntimeError, AssertionError, ValueError):  # shapes that do not go together, in timm's various words
        return False
    strides = outline.feature_info.reduction()
    return all(x.shape[2:] == tuple(-(-side // s) for side in size) for x, s in zip(maps, strides, strict=True))


def _freeze_statistics(model: nn.Module) -> None:
    """Let batch norms, all of whose parameters are frozen, keep their statistics, too."""
    from timm.layers import freeze_batch_norm_2d

    for parent in list(model.modules()):
        for name, child in parent.named_children():
            is_norm = isinstance(child, nn.modules.batchnorm._BatchNorm) and child.affine
            if is_norm and not any(parameter.requires_grad for parameter in child.parameters()):
                setattr(parent, name, freeze_batch_norm_2d(child))


@torch.enable_grad()
def _unused_parameters(outline: nn.Module, indices: Sequence[int], side: int) -> set[str]:
    """Names of the parameters that maps of these indices do not depend on; `side`: of an image that the model takes."""
    maps = _maps(outline, torch.zeros(1, 3, side, side, device="meta"))
    torch.autograd.backward([maps[i].sum() for i in indices])
    return {name for name, parameter in outline.named_parameters() if parameter.grad is None}


def _announce_weights(name: str) -> None:
    """Say what is about to be fetched, and which images it has learned on."""
    import timm

    weights = timm.get_pretrained_cfg(name)
    if weights is None or not weights.has_weights:
        raise UserError(f"MODEL.PSF.TIMM.PRETRAINED is True, but timm has no weights of {name}: set it to False")
    source = f"the Hugging Face hub, {weights.hf_hub_id}" if weights.hf_hub_id else weights.url or weights.file
    mean, std = ([round(255 * value, 3) for value in values] for values in (weights.mean, weights.std))
    logger.info(
        "MODEL.PSF.TIMM.PRETRAINED: the weights %s.%s come from %s, or from timm's cache. They are for INPUT.FORMAT "
        '"RGB", MODEL.PIXEL_MEAN %s, PIXEL_STD %s',
        *(weights.architecture, weights.tag, source, mean, std),
    )


def _create_model(name: str, drop_path: float, **arguments: Any) -> nn.Module:
    """timm's model with this rate of drop path, also with 0 if timm's default differs; some models have none."""
    import timm
    from timm.layers import DropPath

    model: nn.Module
    try:
        model = timm.create_model(name, drop_path_rate=drop_path, **arguments)
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        model = timm.create_model(name, **arguments)
    except OSError as error:
        raise UserError(
            f"MODEL.PSF.TIMM.PRETRAINED is True, but the weights of {name} cannot be fetched ({error}): set it to "
            "False, and name a file in MODEL.WEIGHTS"
        ) from error
    if drop_path and not any(isinstance(module, DropPath) for module in model.modules()):
        raise UserError(f"MODEL.PSF.TIMM.DROP_PATH is {drop_path}, but {name} has no drop path: set it to 0.0")
    return model


def _map_name(stride: int) -> str:
    return f"res{int(math.log2(stride))}"


def _any_size(name: str) -> dict[str, bool]:
    """Swin is bound to the image size that it was pretrained with, unless told otherwise."""
    return {"strict_img_size": False} if name.startswith(("swin_", "swinv2_")) else {}


@BACKBONE_REGISTRY.register()
def build_psf_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """MODEL.BACKBONE.NAME "build_psf_timm_backbone": the timm model of MODEL.PSF.TIMM, its maps by `backbone_maps`."""
    node = cfg.MODEL.PSF.TIMM
    return TimmBackbone(
        node.NAME,
        out_features=backbone_maps(cfg),
        in_channels=input_shape.channels,
        frozen_norm=node.FROZEN_NORM,
        drop_path=node.DROP_PATH,
        freeze=node.FREEZE,
        pretrained=node.PRETRAINED,
    )
