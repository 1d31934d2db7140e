"""Configs and published weights by name, with the functions of Detectron2's `model_zoo`.

The path of a config needs neither torch nor Detectron2: the other functions import them when they are called.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from psf.errors import UserError
from psf.model_zoo.names import find

if TYPE_CHECKING:
    from detectron2.config import CfgNode
    from torch import nn

__all__ = [
    "ZooModel",
    "find_config_file",
    "find_model",
    "get",
    "get_checkpoint_url",
    "get_config",
    "get_config_file",
    "resolve",
]

CHECKPOINT_SUFFIXES = (".pth", ".pkl", ".pt")


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
    from psf.model_zoo.published import prepared_weights

    published = find(name)
    return ZooModel(published.name, published.config, prepared_weights(published))


def get_checkpoint_url(config: str) -> str:
    """MODEL.WEIGHTS for the published weights of a config: "psf://released/R50_24ep". Nothing is downloaded.

    Args:
        config: as for `resolve`.

    Raises:
        UserError: if there are no published weights of this config.
    """
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
        alike = _similar(name, names)
        hint = f"did you mean {' or '.join(alike)}?" if alike else f"{root} contains {len(names)} configs"
        raise UserError(f"psf has no config {name!r}; {hint}")
    return str(root / name)


def _similar(name: str, names: Sequence[str]) -> list[str]:
    """The names that the writer of `name` may mean: at most three, and none that is clearly worse than the best."""

    def likeness(one: str) -> float:
        pairs = ((name, one), (Path(name).name, Path(one).name))
        return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    ordered = sorted(names, key=likeness, reverse=True)[:3]
    return [one for one in ordered if likeness(one) > max(0.75, likeness(ordered[0]) - 0.06)]


def find_config_file(name: str) -> str:
    """Path of a config: `name` itself if it is a file, or a config that comes with psf.

    Raises:
        UserError: if there is no such yaml.
    """
    if not name:
        raise UserError("--config-file is missing: expected a yaml, or a config of psf such as small/psf_small.yaml")
    if os.path.isdir(name):
        raise UserError(
            f"--config-file {name!r} is a folder: expected a yaml, such as {os.path.join(name, 'config.yaml')}"
        )
    if not os.path.isfile(name):
        try:
            name = get_config_file(name)
        except UserError as error:
            raise UserError(f"--config-file {name!r} does not exist, and {error}") from error
    if name.endswith(".py"):
        raise UserError(
            f"--config-file {name!r} is a LazyConfig, for Detectron2's lazyconfig_train_net.py: expected a yaml"
        )
    return name


def find_model(model: str) -> str:
    """What MODEL.WEIGHTS may be for a model that a user names: a file or an address as it is, or "psf://released/NAME".

    Args:
        model: a checkpoint file, an address, or a name for `resolve`, such as "R50".

    Raises:
        UserError: if there is no such file or name.
    """
    path = os.path.expanduser(model)
    if "://" in path or os.path.lexists(path):
        return path
    if not path:
        raise UserError("the model is empty: expected a model file (.pth), or the name of a published model (R50)")
    if path.endswith(CHECKPOINT_SUFFIXES):
        raise UserError(f"{path}: no such model file")
    try:
        return find(path).address
    except UserError as error:
        raise UserError(f"{path}: no such model file; {error}") from error
