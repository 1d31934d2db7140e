"""The names of a model's classes, in the order in which its heads have them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog

from psf.classes import PanopticClasses, classes_from_config

__all__ = ["ClassNames", "check_same_classes", "class_names_from_config"]

ENTRY = "psf_class_names"  # of a checkpoint


class ClassNames(NamedTuple):
    """Names of the thing classes and of the stuff classes."""

    things: tuple[str, ...]
    stuff: tuple[str, ...]

    @classmethod
    def of_dataset(cls, name: str) -> ClassNames | None:
        """Those that the metadata of a data set give; None if they name none, or not all."""
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
        """Those that a checkpoint was saved with; None if it was saved without."""
        entry = checkpoint.get(ENTRY)
        return None if entry is None else cls(tuple(entry["things"]), tuple(entry["stuff"]))

    def as_entry(self) -> dict[str, dict[str, list[str]]]:
        """What a checkpoint holds of them, beside the weights."""
        return {ENTRY: {"things": list(self.things), "stuff": list(self.stuff)}}


def class_names_from_config(cfg: CfgNode) -> ClassNames | None:
    """Names of the classes that `psf.classes.classes_from_config` finds; None if no data set names them.

    Joint queries have heads of things alone, which know the stuff classes after the thing classes.
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
    """Check that the data sets of one run have the same things, as far as they have any, and the same stuff.

    Raises:
        ValueError: if a name or a contiguous id is another one than in the first of them.
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
                raise ValueError(
                    f'DATASETS: the {kind} of "{dataset}" are not those of "{other}", for which the model is built '
                    f"({len(own)} against {len(wanted)}; the contiguous id or the name differs in {difference}). Give "
                    "DATASETS.TRAIN and DATASETS.TEST data sets with the same classes; those of panoptic JSONs are "
                    "the same if their `categories` are, in the same order"
                )
