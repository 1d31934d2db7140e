"""Convert checkpoints of other projects to files for MODEL.WEIGHTS, and check them against the model."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from psf.checkpoint.entries import ModelEntry, class_names_from_config
from psf.checkpoint.imagenet import NOT_IN_IMAGENET, convert_imagenet, find_layout
from psf.checkpoint.loading import without_wrappers
from psf.checkpoint.name_table import count_matches, is_match
from psf.checkpoint.reading import read_state_dict
from psf.checkpoint.released import DROPPED, convert_released
from psf.checkpoint.saving import write_checkpoint
from psf.errors import UserError

__all__ = ["Conversion", "convert_checkpoint", "convert_entries", "shapes_of_model"]

BACKBONE = "backbone."
NUM_NAMED = 8  # entries listed in an error message


class Conversion(NamedTuple):
    """Outcome of a conversion, in entries of the checkpoint."""

    is_backbone: bool  # an ImageNet backbone, not a whole released model
    num_source: int
    num_written: int  # more than the source entries used: some are split in two
    dropped: dict[str, int]  # pattern -> entries dropped on purpose
    fresh: dict[str, int]  # pattern -> backbone entries that keep their initial values: no source has them


def convert_checkpoint(source: str | Path, target: str | Path, cfg: CfgNode, *, overwrite: bool = False) -> Conversion:
    """Write a released checkpoint, or an ImageNet backbone, as the config's MODEL.WEIGHTS.

    A released checkpoint is written with its class names, if the config's dataset has them, so that its heads can be
    re-mapped to another dataset.

    Args:
        source: a released Panoptic SegFormer, or a classifier that `convert_imagenet` supports; the entry names decide.
        target: file to write; it appears complete or not at all.
        cfg: config of the model.
        overwrite: whether `target` may exist.

    Raises:
        UserError: if a file cannot be read or written, the source has unknown entries, or the converted entries do not
            match the names and shapes of the model (or its backbone). The message lists the entries.
    """
    source, target = Path(source), Path(target)
    if target.is_dir() or os.path.realpath(target) == os.path.realpath(source):
        raise UserError(f"{target}: is a folder, or the source itself; name another file")
    if os.path.lexists(target) and not overwrite:
        raise UserError(f"{target}: already exists; name another file, or overwrite it with --force")
    content, conversion = convert_entries(read_state_dict(source), cfg, str(source))
    _write(content, target)
    return conversion


def convert_entries(entries: Mapping[str, Tensor], cfg: CfgNode, source: str) -> tuple[dict[str, Any], Conversion]:
    """The content of a file for MODEL.WEIGHTS, from the entries of another project's file.

    Args:
        entries: of `psf.checkpoint.read_state_dict`; prefixes of DistributedDataParallel and torch.compile are removed.
        cfg: config of the model.
        source: name of the file, for messages.

    Raises:
        UserError: as `convert_checkpoint`.
    """
    entries = without_wrappers(entries)
    is_backbone = not any(name.startswith("bbox_head.") for name in entries)
    wanted = shapes_of_model(cfg)
    may_be_missing: tuple[str, ...] = ()
    if is_backbone:
        converted, dropped, may_be_missing = convert_imagenet(entries), find_layout(entries).dropped, NOT_IN_IMAGENET
        wanted = {name: shape for name, shape in wanted.items() if name.startswith(BACKBONE)}
    else:
        converted, dropped = convert_released(entries), DROPPED
    _check_fit(converted, wanted, may_be_missing, source)
    names = None if is_backbone else class_names_from_config(cfg)
    content: dict[str, Any] = {"model": converted, **(names.as_entry() if names else {})}
    if not is_backbone:
        content |= ModelEntry.of_config(cfg).as_entry()
    fresh = count_matches(wanted.keys() - converted.keys(), may_be_missing)
    dropped_counts = count_matches(entries, dropped)
    return content, Conversion(is_backbone, len(entries), len(converted), dropped_counts, fresh)


def shapes_of_model(cfg: CfgNode, most_parts: int | None = None) -> dict[str, torch.Size]:
    """Name -> shape of each parameter and buffer, without allocating them.

    Args:
        cfg: of the model.
        most_parts: largest number of modules and parameters that are built, for a config from a stranger.

    Raises:
        UserError: as the model; if it has more than `most_parts`.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"), _limited(most_parts):
        return {name: x.shape for name, x in build_model(cfg).state_dict().items()}


@contextmanager
def _limited(most_parts: int | None) -> Iterator[None]:
    """Stop the construction of a model in this thread as soon as it has too many parts."""
    thread, counter = threading.get_ident(), itertools.count(1)

    def count(module: nn.Module, name: str, part: object) -> None:
        if most_parts is not None and threading.get_ident() == thread and next(counter) > most_parts:
            raise UserError(f"the config describes a model of more than {most_parts} modules and parameters")

    hooks = [register_module_parameter_registration_hook(count), register_module_module_registration_hook(count)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _check_fit(
    converted: Mapping[str, Tensor], wanted: Mapping[str, torch.Size], may_be_missing: Sequence[str], source: str
) -> None:
    """Raise a UserError unless names and shapes match, except for patterns in `may_be_missing`."""
    unfilled = [name for name in wanted if name not in converted and not is_match(name, may_be_missing)]
    foreign = [name for name in converted if name not in wanted]
    other = [
        f"{name} {tuple(converted[name].shape)}, expected {tuple(shape)}"
        for name, shape in wanted.items()
        if name in converted and converted[name].shape != shape
    ]
    complaints = {"not in the model": foreign, "not filled": unfilled, "of another shape": other}
    if any(complaints.values()):
        text = "; ".join(f"{len(names)} {what}: {_shortened(names)}" for what, names in complaints.items() if names)
        raise UserError(f"{source} does not fit the model of this config (--config-file): {text}")


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:NUM_NAMED]) + (", ..." if len(names) > NUM_NAMED else "")


def _write(content: Mapping[str, Any], target: Path) -> None:
    try:
        write_checkpoint(content, target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error})") from error
