"""Any timm model that returns feature maps, as a Detectron2 backbone."""

from __future__ import annotations

import difflib
import functools
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

_EXAMPLES = ("resnet50", "tf_efficientnet_lite0", "pvt_v2_b2", "convnext_tiny")
# No stride divides these sides, and their remainders lie below and above half a stride: rounding down shows.
_ODD_SIZES = ((97, 131), (47, 62))


class TimmBackbone(Backbone):
    """Feature maps of a timm model, named by their stride: res2 (4), res3 (8), res4 (16), res5 (32).

    Each map has sides of side/stride, rounded up. Some models do not keep this for every image (ConvNeXt rounds down,
    Swin raises, MaxViT needs whole windows); `size_divisibility` then pads the images so that they do.

    Args:
        name: timm's name of the model.
        out_features: names of the maps to return.
        in_channels: channels of the image.
        frozen_norm: batch norms keep their statistics and affine parameters.
        drop_path: rate at the last block, from 0 at the first.
        freeze: names of parameters or modules that are not trained; their batch norms keep their statistics.
        pretrained: fetch timm's weights, from the network or timm's cache. False: they come with MODEL.WEIGHTS.

    Parameters that no map depends on (in branches of HRNet) are frozen: DDP would wait for their gradients.

    Raises:
        UserError: if timm has no such model or no weights for it, the weights cannot be fetched, a map is missing or
            has the wrong size, `drop_path` is not a rate or the model has no drop path, or a name in `freeze` is
            unknown.
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
            hint = f"similar names: {', '.join(near)}" if near else f"expected a name such as {', '.join(_EXAMPLES)}"
            raise UserError(
                f'MODEL.PSF.TIMM.NAME is "{name}", which timm {timm.__version__} does not have; {hint} '
                "(timm.list_models() lists all)"
            )
        info = _outline(name).feature_info
        indices = {_map_name(stride): i for i, stride in enumerate(info.reduction())}
        missing = [f for f in out_features if f not in indices]
        if missing:
            raise UserError(
                f"MODEL.PSF.IN_FEATURES, FINE_FEATURE and MASK_FEATURE contain {missing}; {name} has {sorted(indices)}"
            )
        self._maps_in_order = sorted(out_features, key=indices.__getitem__)  # timm's order
        self._size_divisibility = _size_divisibility(name)
        if pretrained:
            _announce_weights(name)
        self.model = _create_model(
            name,
            drop_path,
            pretrained=pretrained,
            in_chans=in_channels,
            out_indices=tuple(indices[f] for f in self._maps_in_order),
            **_arguments(name),
        )
        if frozen_norm:
            freeze_batch_norm_2d(self.model)
        freeze_parameters(self.model, freeze, key="MODEL.PSF.TIMM.FREEZE", name=name)
        _freeze_statistics(self.model)
        unused = _unused_parameters(name, tuple(indices[f] for f in out_features), self._size_divisibility or 64)
        for parameter_name, parameter in self.model.named_parameters():
            if parameter_name in unused:
                parameter.requires_grad_(False)
        self._out_features = list(out_features)
        self._out_feature_channels = {f: info.channels()[indices[f]] for f in out_features}
        self._out_feature_strides = {f: info.reduction()[indices[f]] for f in out_features}

    @property
    def size_divisibility(self) -> int:
        """Images must be padded to a multiple of this; 0: no padding."""
        return self._size_divisibility

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) -> map name: (B, channels, H/stride, W/stride), rounded up."""
        return dict(zip(self._maps_in_order, _maps(self.model, images), strict=True))


def _maps(model: nn.Module, images: Tensor) -> list[Tensor]:
    """timm's maps, channels first; timm's Swin returns channels last."""
    maps: list[Tensor] = model(images)
    if getattr(model, "output_fmt", "NCHW") == "NHWC":
        maps = [x.permute(0, 3, 1, 2) for x in maps]
    return maps


def _arguments(name: str) -> dict[str, Any]:
    return {"features_only": True, **_any_size(name)}


# What a name implies is found once per process: a training builds its model twice, first to check the config.
@functools.lru_cache(maxsize=16)
def _outline(name: str) -> Any:
    """timm's model on the meta device, which has shapes only: no memory, and almost no time."""
    import timm

    try:
        with torch.device("meta"):
            return timm.create_model(name, pretrained=False, **_arguments(name)).eval()
    except RuntimeError as error:  # an unknown tag, or a model without feature maps
        raise UserError(f'MODEL.PSF.TIMM.NAME is "{name}", but timm cannot return its feature maps: {error}') from error


@functools.lru_cache(maxsize=16)
def _size_divisibility(name: str) -> int:
    """The smallest of 0, the largest stride and the pretraining image size whose multiples give maps that fit."""
    import timm

    outline = _outline(name)
    pretraining = timm.get_pretrained_cfg(name)
    stride, side = max(outline.feature_info.reduction()), pretraining.input_size[-1] if pretraining else 0
    for divisibility in (0, stride, side):
        sizes = ((divisibility, 2 * divisibility), (3 * divisibility, divisibility)) if divisibility else _ODD_SIZES
        if all(_maps_fit(outline, size) for size in sizes):
            return divisibility
    raise UserError(
        f'MODEL.PSF.TIMM.NAME is "{name}", which accepts only one image size, or whose maps do not have sides of image '
        "side / stride; choose another model"
    )


@torch.no_grad()
def _maps_fit(outline: Any, size: tuple[int, int]) -> bool:
    """Whether a model on the meta device accepts this image size, and each map has sides of side/stride, rounded up."""
    try:
        maps = _maps(outline, torch.zeros(1, 3, *size, device="meta"))
    except (RuntimeError, AssertionError, ValueError):  # timm's errors for shapes that do not fit
        return False
    strides = outline.feature_info.reduction()
    return all(x.shape[2:] == tuple(-(-side // s) for side in size) for x, s in zip(maps, strides, strict=True))


def _freeze_statistics(model: nn.Module) -> None:
    """Freeze the statistics of batch norms whose parameters are all frozen."""
    from timm.layers import freeze_batch_norm_2d

    for parent in list(model.modules()):
        for name, child in parent.named_children():
            is_norm = isinstance(child, nn.modules.batchnorm._BatchNorm) and child.affine
            if is_norm and not any(parameter.requires_grad for parameter in child.parameters()):
                setattr(parent, name, freeze_batch_norm_2d(child))


@functools.lru_cache(maxsize=16)
@torch.enable_grad()
def _unused_parameters(name: str, indices: tuple[int, ...], side: int) -> frozenset[str]:
    """Names of the parameters that none of these maps depends on; the model accepts images of this side."""
    outline = _outline(name)
    maps = _maps(outline, torch.zeros(1, 3, side, side, device="meta"))
    parameters = dict(outline.named_parameters())
    gradients = torch.autograd.grad([maps[i].sum() for i in indices], list(parameters.values()), allow_unused=True)
    return frozenset(key for key, gradient in zip(parameters, gradients, strict=True) if gradient is None)


def _announce_weights(name: str) -> None:
    """Log which weights are fetched, and their image normalization."""
    import timm

    weights = timm.get_pretrained_cfg(name)
    if weights is None or not weights.has_weights:
        raise UserError(f"MODEL.PSF.TIMM.PRETRAINED is True, but timm has no weights for {name}: set it to False")
    source = f"the Hugging Face hub, {weights.hf_hub_id}" if weights.hf_hub_id else weights.url or weights.file
    mean, std = ([round(255 * value, 3) for value in values] for values in (weights.mean, weights.std))
    logger.info(
        "MODEL.PSF.TIMM.PRETRAINED: the weights %s.%s come from %s, or from timm's cache. They are for INPUT.FORMAT "
        '"RGB", MODEL.PIXEL_MEAN %s, PIXEL_STD %s',
        *(weights.architecture, weights.tag, source, mean, std),
    )


def _create_model(name: str, drop_path: float, **arguments: Any) -> nn.Module:
    """timm's model with this drop path rate, which replaces timm's default; some models have no drop path."""
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
    """timm's arguments for any image size; without them Swin accepts only its pretraining size."""
    return {"strict_img_size": False} if name.startswith(("swin_", "swinv2_")) else {}


@BACKBONE_REGISTRY.register()
def build_psf_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """MODEL.BACKBONE.NAME "build_psf_timm_backbone": MODEL.PSF.TIMM's model with the maps of `backbone_maps`."""
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
