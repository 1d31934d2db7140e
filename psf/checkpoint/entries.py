"""Checkpoint entries in addition to the weights: the model's config, class names and tuned merging thresholds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import Metadata, MetadataCatalog

import psf
from psf.checkpoint.reading import wrong_entry
from psf.config import add_psf_config, leaves
from psf.errors import UserError
from psf.inference import MergingThresholds
from psf.meta_arch import classes_from_config, metadata_from_config, store_classes
from psf.structures import PanopticClasses, read_classes
from psf.structures.class_list import MAX_NAME

__all__ = ["ClassNames", "ModelEntry", "TunedMerging", "check_same_classes", "class_names_from_config"]

CLASSES_ENTRY = "psf_class_names"
MERGING_ENTRY = "psf_merging"
MODEL_ENTRY, MODEL_VERSION = "psf_model", 1
# What a model file may set: the model, its input and its results. All other keys belong to a run or to a machine.
MODEL_KEYS = (
    *("VERSION", "MODEL.", "INPUT.FORMAT", "INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST"),
    *("TEST.AUG.", "TEST.DETECTIONS_PER_IMAGE", "DATASETS.TEST"),
)
NO_MODEL_KEYS = ("MODEL.WEIGHTS", "MODEL.DEVICE", "MODEL.PSF.TIMM.PRETRAINED")


class ClassNames(NamedTuple):
    """Names of the thing classes and of the stuff classes."""

    things: tuple[str, ...]
    stuff: tuple[str, ...]

    @classmethod
    def of_dataset(cls, name: str) -> ClassNames | None:
        """The names in a dataset's metadata; None if a class has no name."""
        metadata = MetadataCatalog.get(name)
        classes = PanopticClasses.from_metadata(metadata)
        return None if classes is None else cls._of_ids(classes, metadata)

    @classmethod
    def _of_ids(cls, classes: PanopticClasses, metadata: Metadata) -> ClassNames | None:
        things, stuff = metadata.get("thing_classes") or [], metadata.get("stuff_classes") or []
        if max(classes.thing_ids, default=-1) >= len(things) or max(classes.stuff_ids, default=-1) >= len(stuff):
            return None
        return cls(tuple(things[i] for i in classes.thing_ids), tuple(stuff[i] for i in classes.stuff_ids))

    @classmethod
    def of_checkpoint(cls, checkpoint: Mapping[str, Any]) -> ClassNames | None:
        """The names in a checkpoint; None if it has none, a UserError if its entry is something else."""
        entry = checkpoint.get(CLASSES_ENTRY)
        if entry is None:
            return None
        lists = [entry.get(kind) for kind in cls._fields] if isinstance(entry, Mapping) else [None]
        if not all(isinstance(one, (list, tuple)) and all(map(_is_name, one)) for one in lists):
            expected = f'lists of names (up to {MAX_NAME} characters) under "things" and "stuff"'
            raise wrong_entry(CLASSES_ENTRY, entry, expected)
        return cls(tuple(entry["things"]), tuple(entry["stuff"]))

    def as_entry(self) -> dict[str, dict[str, list[str]]]:
        """The checkpoint entry for the names."""
        return {CLASSES_ENTRY: {"things": list(self.things), "stuff": list(self.stuff)}}


def _is_name(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_NAME


class ModelEntry(NamedTuple):
    """What a checkpoint has besides its weights, so that it can be used alone: the config of its model, and more.

    The config has the keys of `is_model_key`: those under MODEL.PSF, class names and colours included (CLASSES), and
    those of Detectron2 that differ from its defaults.
    """

    config: str  # YAML, plain values; from a stranger's file: read it with `psf.engine.config.files.merge_config_text`
    psf_version: str  # of the program that has written it

    @staticmethod
    def is_model_key(key: str) -> bool:
        """Whether the config in a model file may have this dotted key."""
        return key.startswith(MODEL_KEYS) and key not in NO_MODEL_KEYS

    @classmethod
    def of_config(cls, cfg: CfgNode) -> ModelEntry:
        """The entry for the model of a config; the classes are those of `store_classes`.

        Raises:
            UserError: as `psf.structures.read_classes`, for the classes of a dataset.
        """
        cfg, defaults = cfg.clone(), get_cfg()
        add_psf_config(defaults)
        cfg.defrost()
        store_classes(cfg)
        read_classes(cfg.MODEL.PSF.CLASSES)  # now, not when the trained model is read
        usual, content = dict(leaves(defaults)), dict[str, Any]()
        for key, value in leaves(cfg):
            is_stored = key.startswith("MODEL.PSF.") or key == "VERSION" or value != usual.get(key, cls)
            if is_stored and cls.is_model_key(key):
                *parents, name = key.split(".")
                node = content
                for parent in parents:
                    node = node.setdefault(parent, {})
                node[name] = value
        return cls(yaml.safe_dump(content, allow_unicode=True), psf.__version__)

    @classmethod
    def of_checkpoint(cls, checkpoint: Mapping[str, Any]) -> ModelEntry | None:
        """The entry of a checkpoint; None if it has none.

        Raises:
            UserError: if its entry is something else, or a later psf has written it in another form.
        """
        entry = checkpoint.get(MODEL_ENTRY)
        if entry is None:
            return None
        fields = [entry.get(name) for name in cls._fields] if isinstance(entry, Mapping) else [None]
        if isinstance(entry, Mapping) and entry.get("version") != MODEL_VERSION:
            raise UserError(
                f"the checkpoint describes its model in version {str(entry.get('version'))[:20]!r} (of psf "
                f"{str(entry.get('psf_version'))[:20]}), this psf {psf.__version__} reads version {MODEL_VERSION}: "
                "update psf, or name its config with --config-file"
            )
        if not all(isinstance(one, str) for one in fields):
            raise wrong_entry(MODEL_ENTRY, entry, f"texts under {' and '.join(cls._fields)}")
        return cls(*fields)

    def as_entry(self) -> dict[str, dict[str, Any]]:
        """The checkpoint entry."""
        return {MODEL_ENTRY: {"version": MODEL_VERSION, **self._asdict()}}


class TunedMerging(NamedTuple):
    """Thresholds of things and stuff before and after the search (MODEL.PSF.POST_PROCESSOR.{THINGS,STUFF})."""

    things: MergingThresholds
    stuff: MergingThresholds
    things_before: MergingThresholds  # from the training's config
    stuff_before: MergingThresholds

    @classmethod
    def of_checkpoint(cls, checkpoint: Mapping[str, Any]) -> TunedMerging | None:
        """The thresholds in a checkpoint; None if it has none, a UserError if its entry is something else."""
        entry = checkpoint.get(MERGING_ENTRY)
        if entry is None:
            return None
        groups = [entry.get(name) for name in cls._fields] if isinstance(entry, Mapping) else [None]
        if not all(isinstance(one, Mapping) and _are_thresholds(one) for one in groups):
            keys = ", ".join(MergingThresholds._fields)
            raise wrong_entry(MERGING_ENTRY, entry, f"numbers {keys} under each of {', '.join(cls._fields)}")
        return cls(*(MergingThresholds(**entry[name]) for name in cls._fields))

    def as_entry(self) -> dict[str, dict[str, dict[str, float]]]:
        """The checkpoint entry for the thresholds."""
        numbers = {
            name: {key: float(value) for key, value in one._asdict().items()} for name, one in self._asdict().items()
        }
        return {MERGING_ENTRY: numbers}

    def in_force(
        self, things: MergingThresholds, stuff: MergingThresholds
    ) -> tuple[MergingThresholds, MergingThresholds]:
        """The thresholds to use for a config with `things` and `stuff`.

        A value equal to the training config's or to the tuned one becomes the tuned one. Any other value was set by
        the user after the training and stays.
        """
        return _choose(self.things, self.things_before, things), _choose(self.stuff, self.stuff_before, stuff)


def _are_thresholds(entry: Mapping[Any, Any]) -> bool:
    numbers = entry.values()
    return set(entry) == set(MergingThresholds._fields) and all(
        type(one) in (int, float) and math.isfinite(one) for one in numbers
    )


def class_names_from_config(cfg: CfgNode) -> ClassNames | None:
    """Class names for `psf.meta_arch.classes_from_config`; None if neither a dataset nor MODEL.PSF.CLASSES names them.

    Joint queries have only thing heads, where the stuff classes follow the thing classes.
    """
    metadata = metadata_from_config(cfg)
    names = None if metadata is None else ClassNames._of_ids(classes_from_config(cfg), metadata)
    if names is not None and cfg.MODEL.PSF.QUERIES == "joint":
        return ClassNames(names.things + names.stuff, ())
    return names


def check_same_classes(datasets: Iterable[str]) -> None:
    """Check that the datasets of a run have the same stuff classes, and the same thing classes if they have any.

    Raises:
        UserError: if a name or a contiguous id differs from the first dataset.
    """
    first: dict[str, tuple[str, list[tuple[int, str]]]] = {}
    for dataset in datasets:
        classes = PanopticClasses.from_metadata(MetadataCatalog.get(dataset))
        names = ClassNames.of_dataset(dataset)
        if classes is None or names is None:
            continue
        for kind, ids, of_kind in zip(("things", "stuff"), classes, names, strict=True):
            own = list(zip(ids, of_kind, strict=True))
            other, wanted = first.setdefault(kind, (dataset, own)) if own else (dataset, own)
            if own != wanted:
                difference = sorted(set(own) ^ set(wanted))[:4]
                raise UserError(
                    f'DATASETS: the {kind} of "{dataset}" are not those of "{other}", for which the model is built '
                    f"({len(own)} against {len(wanted)}; the contiguous id or the name differs in {difference}). Use "
                    "datasets with the same classes in DATASETS.TRAIN and DATASETS.TEST; panoptic JSONs have the same "
                    "classes if their `categories` are equal and in the same order"
                )


def _choose(tuned: MergingThresholds, before: MergingThresholds, config: MergingThresholds) -> MergingThresholds:
    return MergingThresholds(
        *(new if now in (old, new) else now for new, old, now in zip(tuned, before, config, strict=True))
    )
