"""What is inside a checkpoint, in words: of psf, of a published model, of an ImageNet classifier or of any other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from psf.checkpoint import (
    ClassNames,
    ModelEntry,
    TunedMerging,
    arrange_weights,
    find_damage,
    has_checksum,
    kind_of_weights,
    read_checkpoint,
)
from psf.errors import UserError
from psf.inference import MergingThresholds
from psf.prediction.model_file import find_model_file, read_config
from psf.structures import read_classes

__all__ = ["describe_checkpoint"]

NO_PARAMETERS = ("running_mean", "running_var", "num_batches_tracked")


def describe_checkpoint(model: str) -> list[tuple[str, str]]:
    """Describe a checkpoint in lines of a title and a text; no dataset is needed, and nothing is executed.

    Args:
        model: as for `psf.prediction.find_model_file`.

    Raises:
        UserError: if the file cannot be read, or has no weights.
    """
    path = find_model_file(model)
    content = read_checkpoint(path)
    weights = arrange_weights(content, path)["model"]
    lines = [
        ("file", f"{path}, {Path(path).stat().st_size / 1e6:.1f} MB"),
        ("bytes", _describe_bytes(Path(path))),
    ]
    entry = ModelEntry.of_checkpoint(content)
    if entry is None:
        lines.append(("kind", f"{kind_of_weights(content, path)}; no config inside: use it with --config-file"))
        lines += _describe_names(ClassNames.of_checkpoint(content))
    else:
        lines.append(("kind", f"a model file of psf {entry.psf_version[:20]}, usable alone"))
        lines += _describe_config(content, path)
    lines.append(("parameters", _count(weights)))
    lines += _describe_training(content)
    return lines


def _describe_bytes(path: Path) -> str:
    if damage := find_damage(path):
        return f"DAMAGED: {damage}" if has_checksum(path) else "no checksum inside"
    return "sound (SHA-256 inside)" if has_checksum(path) else "sound (CRC-32 of each tensor)"


def _describe_config(content: dict[str, Any], path: str) -> list[tuple[str, str]]:
    try:
        cfg = read_config(content, path)
    except UserError as error:
        return [("config", f"cannot be used as it is: {error}")]
    node, entries = cfg.MODEL.PSF, read_classes(cfg.MODEL.PSF.CLASSES)
    names = ClassNames(
        tuple(one.name for one in entries if one.is_thing), tuple(one.name for one in entries if not one.is_thing)
    )
    tiles = node.TEST.TILES.SIZE
    return [
        ("architecture", f"{cfg.MODEL.META_ARCHITECTURE}, {_describe_backbone(cfg)}"),
        (
            "",
            f"{node.NUM_THING_QUERIES} {'joint' if node.QUERIES == 'joint' else 'thing'} queries, {node.HIDDEN_DIM} "
            f"channels, layers: {node.PIXEL_ENCODER.NUM_LAYERS} pixel encoder, {node.LOCATION_DECODER.NUM_LAYERS} "
            f"location decoder, {node.MASK_DECODER.NUM_THING_LAYERS} + {node.MASK_DECODER.NUM_STUFF_LAYERS} "
            "mask decoder",
        ),
        (
            "images",
            f"{cfg.INPUT.FORMAT}, {len(cfg.MODEL.PIXEL_MEAN)} channels, short side {cfg.INPUT.MIN_SIZE_TEST}, long "
            f"side at most {cfg.INPUT.MAX_SIZE_TEST} pixels" + (f", tiles of {tiles}" if tiles else ""),
        ),
        ("", f"mean {_short(cfg.MODEL.PIXEL_MEAN)}, standard deviation {_short(cfg.MODEL.PIXEL_STD)}"),
        *_describe_names(names),
        *_describe_thresholds(cfg, TunedMerging.of_checkpoint(content)),
        *([("evaluated on", ", ".join(cfg.DATASETS.TEST))] if cfg.DATASETS.TEST else []),
    ]


def _describe_backbone(cfg: CfgNode) -> str:
    name, node = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.PSF
    details = {
        "build_resnet_backbone": f"ResNet-{cfg.MODEL.RESNETS.DEPTH}",
        "build_psf_timm_backbone": f"{node.TIMM.NAME} of timm",
        "build_psf_swin_backbone": f"Swin with {node.SWIN.EMBED_DIM} channels and {list(node.SWIN.DEPTHS)} blocks",
    }
    return f"backbone {details.get(name, name)}"


def _describe_names(names: ClassNames | None) -> list[tuple[str, str]]:
    if names is None:
        return [("classes", "unknown")]
    lines = [("classes", f"{len(names.things)} things, {len(names.stuff)} stuff")]
    for kind, of_kind in zip(ClassNames._fields, names, strict=True):
        lines += [("", f"{kind}: {', '.join(of_kind)}")] if of_kind else []
    return lines


def _describe_thresholds(cfg: CfgNode, tuned: TunedMerging | None) -> list[tuple[str, str]]:
    node = cfg.MODEL.PSF.POST_PROCESSOR
    things, stuff = (
        MergingThresholds(alpha=one.ALPHA, beta=one.BETA, t_cnf=one.T_CNF, t_keep=one.T_KEEP)
        for one in (node.THINGS, node.STUFF)
    )
    if tuned is not None:
        things, stuff = tuned.in_force(things, stuff)
    how = " (tuned on training images)" if tuned is not None else ""
    lines = [("merging", f"{node.NAME}, mask threshold {node.MASK_THRESHOLD:g}{how}")]
    for name, one in (("things", things), ("stuff", stuff)):
        numbers = ", ".join(f"{key} {value:.4g}" for key, value in one._asdict().items())
        lines.append(("", f"{name}: {numbers}"))
    return lines


def _describe_training(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    iteration = content.get("iteration")
    if not isinstance(iteration, int):
        return [("training", "unknown")]
    state = "with" if "trainer" in content else "without"
    return [("training", f"{iteration + 1} iterations, {state} the state that --resume continues from")]


def _count(weights: Mapping[str, Any]) -> str:
    counted = [value for name, value in weights.items() if not name.endswith(NO_PARAMETERS)]
    types = sorted({str(value.dtype).removeprefix("torch.") for value in counted})
    number = sum(int(value.numel()) if hasattr(value, "numel") else int(value.size) for value in counted)
    return f"{number:,} in {len(counted)} tensors, {', '.join(types)}"


def _short(values: Any) -> str:
    return " ".join(f"{value:g}" for value in values)
