"""Checkpoint entries in addition to the weights: class names and tuned merging thresholds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog

from psf.checkpoint.reading import wrong_entry
from psf.errors import UserError
from psf.inference import MergingThresholds
from psf.meta_arch import classes_from_config
from psf.structures import PanopticClasses

__all__ = ["ClassNames", "TunedMerging", "check_same_classes", "class_names_from_config"]

CLASSES_ENTRY = "psf_class_names"
MERGING_ENTRY = "psf_merging"


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
        if not all(isinstance(one, (list, tuple)) and all(isinstance(name, str) for name in one) for one in lists):
            raise wrong_entry(CLASSES_ENTRY, entry, 'lists of names under "things" and "stuff"')
        return cls(tuple(entry["things"]), tuple(entry["stuff"]))

    def as_entry(self) -> dict[str, dict[str, list[str]]]:
        """The checkpoint entry for the names."""
        return {CLASSES_ENTRY: {"things": list(self.things), "stuff": list(self.stuff)}}


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
    """Class names for `psf.meta_arch.classes_from_config`; None if no dataset names them.

    Joint queries have only thing heads, where the stuff classes follow the thing classes.
    """
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        metadata = MetadataCatalog.get(name)
        if PanopticClasses.from_metadata(metadata) is not None:
            names = ClassNames._of_ids(classes_from_config(cfg), metadata)
            if names is not None and cfg.MODEL.PSF.QUERIES == "joint":
                return ClassNames(names.things + names.stuff, ())
            return names
    return None


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
