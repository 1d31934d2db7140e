"""Checkpoints of every layout that psf knows, as entries for Detectron2's checkpointer."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from torch import Tensor

from psf.checkpoint.imagenet import LAYOUTS, convert_imagenet
from psf.checkpoint.reading import no_weight
from psf.checkpoint.released import BACKBONES, convert_released
from psf.errors import UserError

__all__ = ["arrange_weights", "kind_of_weights", "without_wrappers"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

WRAPPERS = ("module.", "_orig_mod.")  # prefixes of DistributedDataParallel and torch.compile


def arrange_weights(content: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Arrange the content of a checkpoint for Detectron2's checkpointer.

    Takes the files of psf and Detectron2, .pkl files of Detectron2's model zoo and Caffe2, .pyth files of pycls, and a
    dict of weights, plain or under "state_dict". A released Panoptic SegFormer or an ImageNet classifier is converted
    as by `psf convert-weights`. Prefixes of DistributedDataParallel and torch.compile are removed.

    Args:
        content: of `psf.checkpoint.read_checkpoint`.
        path: of the file, for its suffix and messages.

    Returns:
        The weights under "model", and the other entries of the file; "matching_heuristics": True if Detectron2 has to
        match the names.

    Raises:
        UserError: naming the file, if it has no weights or cannot be converted.
    """
    if path.endswith(".pkl") and not ("model" in content and "__author__" in content):
        blobs = content.get("blobs", content)  # detection models of Caffe2 have them, ImageNet models are them
        weights = {name: value for name, value in _weights(blobs, path).items() if not name.endswith("_momentum")}
        return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}
    if path.endswith(".pyth"):
        weights = _weights(content.get("model_state"), path)
        weights = {name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")}
        return {"model": weights, "__author__": "pycls", "matching_heuristics": True}
    key = next((key for key in ("model", "state_dict") if isinstance(content.get(key), Mapping)), None)
    others = {} if key is None else {name: value for name, value in content.items() if name != key}
    weights = _weights(content if key is None else content[key], path)
    if content.get("matching_heuristics"):
        return {**others, "model": weights}
    return {**others, "model": _converted(without_wrappers(weights), path)}


def kind_of_weights(content: Mapping[str, Any], path: str) -> str:
    """What a checkpoint that is no model file of psf contains, in a few words.

    Args:
        content, path: as for `arrange_weights`, which accepts them.
    """
    if path.endswith(".pkl") or content.get("matching_heuristics"):
        return f"weights of {content.get('__author__', 'Caffe2')}, whose names Detectron2 matches"
    if path.endswith(".pyth"):
        return "weights of pycls"
    key = next((key for key in ("model", "state_dict") if isinstance(content.get(key), Mapping)), None)
    weights = without_wrappers(_weights(content if key is None else content[key], path))
    if _is_released(weights):
        return "a released Panoptic SegFormer, under the names of its authors"
    if _has(weights, (layout.marker for layout in LAYOUTS)):
        return "an ImageNet classifier"
    if any(name.startswith("pixel_encoder.") for name in weights):
        return "a Panoptic SegFormer under psf's names"
    if all(name.startswith("backbone.") for name in weights):
        return "a backbone under psf's or Detectron2's names"
    return "weights of another model"


def _is_released(weights: Mapping[str, Any]) -> bool:
    return _has(weights, BACKBONES) and any(name.startswith("bbox_head.") for name in weights)


def _weights(entries: Any, path: str) -> dict[str, Any]:
    """The entries, if all of them are dense tensors or arrays of real numbers, with names."""
    if isinstance(entries, Mapping) and entries:
        wrong = [f"{name!r}, {found}" for name, value in entries.items() if (found := no_weight(value))]
        wrong += [f"the name {name!r}" for name in entries if not isinstance(name, str)]
        if not wrong:
            return dict(entries)
        found = f"entries that are no weights, such as {wrong[0]}"
    else:
        found = "no weights"
    raise UserError(f'{path}: expected a dict of tensors, or one under "model" or "state_dict"; found {found}')


def without_wrappers(weights: Mapping[str, T]) -> dict[str, T]:
    """The same weights under the names of the model inside of its wrappers; a wrapped part is freed, too."""
    entries = dict(weights)
    while prefix := next((one for one in WRAPPERS if entries and all(name.startswith(one) for name in entries)), None):
        entries = {name.removeprefix(prefix): value for name, value in entries.items()}
    return {name.replace("._orig_mod.", "."): value for name, value in entries.items()}


def _converted(weights: dict[str, Any], path: str) -> dict[str, Any]:
    """Weights of a released model or of an ImageNet classifier under psf's names; all others unchanged."""
    is_released = _is_released(weights)
    if not is_released and not _has(weights, (layout.marker for layout in LAYOUTS)):
        return weights
    tensors = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    try:
        converted = convert_released(tensors) if is_released else convert_imagenet(tensors)
    except UserError as error:
        raise UserError(f"{path}: cannot be converted, as by psf convert-weights: {error}") from error
    kind = "a released Panoptic SegFormer" if is_released else "an ImageNet classifier"
    logger.info("%s is %s: converted, as by psf convert-weights", path, kind)
    return dict(converted)


def _has(weights: Mapping[str, Any], markers: Iterable[str]) -> bool:
    return any(marker in weights for marker in markers)
