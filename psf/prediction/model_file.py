"""Model files: the config and the weights of a trained model in one checkpoint."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY

from psf.checkpoint import (
    ClassNames,
    ModelEntry,
    arrange_weights,
    class_names_from_config,
    read_checkpoint,
    shapes_of_model,
    stored_query_count,
)
from psf.config import add_psf_config, import_user_modules
from psf.data.files import local_path
from psf.engine import build_config
from psf.engine.checkpointer import check_weights, file_of_weights
from psf.engine.config.checks import check_config, check_device
from psf.engine.config.files import merge_config_text, merge_options
from psf.errors import UserError
from psf.model_zoo import find_model
from psf.structures import ClassEntry, PanopticClasses

__all__ = ["ModelFile", "choose_device", "find_model_file", "read_config", "read_model_file"]

_DAMAGED = "the file is damaged or was edited; take the original, or name a config with --config-file (config_file=)"
_PARTS_PER_WEIGHT = 8  # modules and parameters that are built for each weight; about 2 in psf's models


class ModelFile(NamedTuple):
    """A model that can be built without any dataset."""

    path: str
    cfg: CfgNode  # MODEL.WEIGHTS is the path, the only dataset of DATASETS.TEST stands for the classes
    content: dict[str, Any]  # of the checkpoint


def find_model_file(model: str | os.PathLike[str]) -> str:
    """Path of a model; the weights of a published one are downloaded if the cache does not have them.

    Args:
        model: a checkpoint file, an address that MODEL.WEIGHTS may have, or a name for `psf.model_zoo.resolve`: "R50".

    Raises:
        UserError: if there is no such file or name, or the file is obviously no checkpoint; as `resolve`.
    """
    name = find_model(os.fspath(model))
    check_weights(name)
    return local_path(file_of_weights(name))


def read_model_file(
    model: str | os.PathLike[str],
    *,
    config_file: str | os.PathLike[str] | None = None,
    options: Sequence[str] = (),
    imports: Sequence[str] = (),
    register: Sequence[str] = (),
    device: str | None = None,
) -> ModelFile:
    """Read a checkpoint, and build the config of its model; nothing in the file is executed or imported.

    Args:
        model: as for `find_model_file`.
        config_file: config in place of the one in the file, for a checkpoint that has none.
        options: KEY VALUE pairs.
        imports: modules with the user's own classes; a file never has them imported.
        register: panoptic sets, for `config_file`.
        device: of the model; None: a GPU if there is one.

    Raises:
        UserError: if the file cannot be read, has no config or needs modules that `imports` lacks; if a key is unknown
            or has a wrong value.
    """
    path = find_model_file(model)
    content = read_checkpoint(path)
    if config_file is not None:
        words = ["MODEL.WEIGHTS", path, *options]
        cfg = build_config(os.fspath(config_file), words, register, imports)
    else:
        cfg = read_config(content, path, options=options, imports=imports)
        cfg.DATASETS.TEST = (os.path.abspath(path),)  # a name that no registered set has
        _check_whole(content, path, read_config(content, path, imports=imports) if options else cfg)
    cfg.MODEL.DEVICE = choose_device(device)
    return ModelFile(path, cfg, content)


def read_config(
    content: dict[str, Any], path: str, *, options: Sequence[str] = (), imports: Sequence[str] = ()
) -> CfgNode:
    """The config of the model in a checkpoint; DATASETS.TEST has the names of the sets that it was evaluated on.

    Args:
        content: of the checkpoint.
        path: of the checkpoint.
        options, imports: as for `read_model_file`.

    Raises:
        UserError: as `read_model_file`.
    """
    try:
        entry = ModelEntry.of_checkpoint(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if entry is None:
        raise UserError(
            f"{path} has weights, but no config of its model: it was not written by psf, or by an earlier version; "
            "name the config.yaml of its training with --config-file (config_file=)"
        )
    cfg = get_cfg()
    add_psf_config(cfg)
    source = f"the config in {path} (of psf {entry.psf_version[:20]})"
    merge_config_text(cfg, entry.config, source, ModelEntry.is_model_key)
    missing = [name for name in cfg.MODEL.PSF.IMPORTS if name not in imports]
    if missing:
        raise UserError(
            f"{path} needs your module {missing[0]!r}, which a model file does not have imported: if you trust this "
            f"module, add --import {missing[0]} (imports=)"
        )
    cfg.MODEL.PSF.IMPORTS = list(imports)
    cfg.MODEL.PSF.CLASSES = cfg.MODEL.PSF.CLASSES or _unnamed_classes(cfg)
    cfg.MODEL.WEIGHTS = path
    merge_options(cfg, list(options))
    import_user_modules(cfg)
    check_config(cfg)
    if META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE).__module__.startswith("detectron2."):
        raise UserError(
            f"{path} has a model of Detectron2, MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}: expected "
            "PanopticSegFormer; it was not written by psf"
        )
    return cfg


def _check_whole(content: dict[str, Any], path: str, cfg: CfgNode) -> None:
    """Check that the config in a file describes the weights and the class names in it, before the model is built.

    Args:
        content: of the checkpoint.
        path: of the checkpoint.
        cfg: from `read_config`, without options of the user.

    Raises:
        UserError: if the file contradicts itself.
    """
    cfg = cfg.clone()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()  # the classes are those of MODEL.PSF.CLASSES
    try:
        stored, names = ClassNames.of_checkpoint(content), class_names_from_config(cfg)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if stored is not None and stored != names:
        own, others = ([] if one is None else [*one.things, *one.stuff] for one in (names, stored))
        foreign = ", ".join(sorted(set(own) ^ set(others))[:3]) or "in another order"
        raise UserError(
            f"{path}: MODEL.PSF.CLASSES in its config names other classes than the file stores with the weights "
            f"({len(own)} against {len(others)}; {foreign}): {_DAMAGED}"
        )
    weights = arrange_weights(content, path)["model"]
    if cfg.MODEL.PSF.NUM_THING_QUERIES == -1:  # from the data
        cfg.MODEL.PSF.NUM_THING_QUERIES = stored_query_count(content) or 1
    try:
        wanted = shapes_of_model(cfg, most_parts=_PARTS_PER_WEIGHT * len(weights) + 1000)
    except (NotImplementedError, RuntimeError) as error:
        if "meta" not in str(error):  # code that needs values, such as a user's own module
            raise
        return
    except UserError as error:
        raise UserError(f"{path}: its weights do not fit the config in it: {error}") from error
    missing = [f"{name} is missing" for name in wanted if name not in weights]
    reshaped = [
        f"{name} has the shape {tuple(weights[name].shape)}, expected {tuple(shape)}"
        for name, shape in wanted.items()
        if name in weights and tuple(weights[name].shape) != tuple(shape)
    ]
    if wrong := reshaped + missing:
        more = f", and {len(wrong) - 1} others" if len(wrong) > 1 else ""
        raise UserError(f"{path}: its weights do not fit the config in it ({wrong[0]}{more}): {_DAMAGED}")


def _unnamed_classes(cfg: CfgNode) -> list[str]:
    """Classes of a model that was built for numbers of classes, without a dataset."""
    counts = (cfg.MODEL.PSF.NUM_THING_CLASSES, cfg.MODEL.PSF.NUM_STUFF_CLASSES)
    if min(counts) < 0:
        return []
    things, stuff = PanopticClasses.from_counts(*counts)
    return [str(ClassEntry(i in things, i, i, None, f"class {i}")) for i in (*things, *stuff)]


def choose_device(device: str | None) -> str:
    """The device for a model: the given one, or a GPU if there is one; a UserError if torch does not have it."""
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    check_device(device, "the device (--device)", must_exist=True)
    return device
