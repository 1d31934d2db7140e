"""Configs and published weights by name, with the functions of Detectron2's `model_zoo`.

The path of a config needs neither torch nor Detectron2: the other functions import them when they are called.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from psf.errors import UserError

if TYPE_CHECKING:
    from detectron2.config import CfgNode
    from torch import nn

__all__ = ["ZooModel", "get", "get_checkpoint_url", "get_config", "get_config_file", "resolve"]


class ZooModel(NamedTuple):
    """A published model, ready to be used."""

    name: str  # "R50_24ep"
    config: str  # for `get_config` and --config-file: "coco/released/psf_R50_24ep.yaml"
    weights: Path  # for MODEL.WEIGHTS: a file in psf's layout, with the names of the classes


def resolve(name: str) -> ZooModel:
    """A published model by its name; its weights are downloaded and converted if the cache does not have them.

    Args:
        name: "R50_24ep", its short form "R50", its config "coco/released/psf_R50_24ep.yaml", or its address
            "psf://released/R50_24ep"; upper and lower case are the same.

    Raises:
        UserError: if there is no such model, or its weights are neither in the cache nor can be downloaded; the message
            has the address, and the path to put the file at.
    """
    from psf.model_zoo.published import find, prepared_weights

    published = find(name)
    return ZooModel(published.name, published.config, prepared_weights(published))


def get_checkpoint_url(config: str) -> str:
    """MODEL.WEIGHTS for the published weights of a config: "psf://released/R50_24ep". Nothing is downloaded.

    Args:
        config: as for `resolve`.

    Raises:
        UserError: if there are no published weights of this config.
    """
    from psf.model_zoo.published import find

    return find(config).address


def get_config(config: str, trained: bool = False) -> CfgNode:
    """A config that comes with psf.

    Args:
        config: name of a yaml below configs/; with `trained`, also any name that `resolve` takes.
        trained: MODEL.WEIGHTS names the published weights of this config, instead of the weights for a training.

    Raises:
        UserError: if there is no such yaml or, with `trained`, if there are no published weights of this config.
    """
    from detectron2.config import get_cfg

    from psf.config import add_psf_config
    from psf.model_zoo.published import find

    published = find(config) if trained else None
    file = get_config_file(published.config if published else config)
    if not file.endswith(".yaml"):
        raise UserError(f"{config}: expected a yaml; detectron2.config.LazyConfig.load reads {file}")
    cfg = get_cfg()
    add_psf_config(cfg)
    cfg.merge_from_file(file)
    if published:
        cfg.MODEL.WEIGHTS = published.address
    return cfg


def get(config: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """A model, in training mode.

    Args:
        config: as for `get_config`.
        trained: with the published weights of this config. Otherwise all weights are random: unlike Detectron2's
            function, this one does not load those of the backbone.
        device: such as "cuda:1"; None: that of the config, or the CPU if torch finds no GPU.

    Raises:
        UserError: as `get_config` and `resolve`.
    """
    import torch
    from detectron2.modeling import build_model

    from psf.checkpoint import read_state_dict

    cfg = get_config(config, trained)
    if device is not None or not torch.cuda.is_available():
        cfg.MODEL.DEVICE = device or "cpu"
    model: nn.Module = build_model(cfg)
    if trained:
        model.load_state_dict(read_state_dict(resolve(config).weights))  # complete: the conversion has checked it
    return model


def get_config_file(name: str) -> str:
    """Path of a config that comes with psf, whether psf is a wheel, an editable install or a checkout.

    Args:
        name: path below configs/, such as "coco/psf_R50_24ep.yaml" or "lazy/released.py".

    Raises:
        UserError: if there is no such config; the message names similar ones.
    """
    package = Path(__file__).resolve().parents[1]
    shipped = package / "configs"  # in a wheel; otherwise configs/ is next to the package
    root = shipped if shipped.is_dir() else package.parent / "configs"
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.suffix in (".yaml", ".py"))
    if name not in names:
        alike = difflib.get_close_matches(name, names, cutoff=0.6)
        hint = f"did you mean {' or '.join(alike)}?" if alike else f"{root} contains {len(names)} configs"
        raise UserError(f"psf has no config {name!r}; {hint}")
    return str(root / name)
