"""The classes of the model of a config: from the metadata of its datasets, or from MODEL.PSF.CLASSES."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog

from psf.errors import UserError
from psf.structures import PanopticClasses, list_classes, metadata_of_classes, read_classes

__all__ = ["StoredMetadata", "classes_from_config", "metadata_from_config", "register_stored_classes", "store_classes"]


class StoredMetadata(Metadata):
    """Metadata from MODEL.PSF.CLASSES, which stand for a dataset until it is registered; entries may be replaced."""

    def __setattr__(self, key: str, value: Any) -> None:
        self.__dict__[key] = value


def metadata_from_config(cfg: CfgNode) -> Metadata | None:
    """Metadata of the first dataset in DATASETS.TRAIN, then DATASETS.TEST, that has classes; else MODEL.PSF.CLASSES.

    None if neither lists classes.
    """
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        metadata = MetadataCatalog.get(name)
        if PanopticClasses.from_metadata(metadata) is not None:
            return metadata
    stored = read_classes(cfg.MODEL.PSF.CLASSES)
    return StoredMetadata(name="MODEL.PSF.CLASSES", **metadata_of_classes(stored)) if stored else None


def register_stored_classes(cfg: CfgNode) -> None:
    """Give the datasets of a config that are not registered here the metadata of MODEL.PSF.CLASSES.

    So programs that look for class names under the name of a dataset, as Detectron2's do, find those of the model.
    """
    if not cfg.MODEL.PSF.CLASSES:
        return
    content = metadata_of_classes(read_classes(cfg.MODEL.PSF.CLASSES))
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        known = MetadataCatalog.get(name)
        if isinstance(known, StoredMetadata) or len(vars(known)) <= 1:  # `get` alone creates an entry, the name
            MetadataCatalog[name] = StoredMetadata(name=name, **content)


def store_classes(cfg: CfgNode) -> None:
    """Set MODEL.PSF.CLASSES to the classes of the config's datasets, in place; it stays if they name none."""
    metadata = metadata_from_config(cfg)
    if metadata is not None and (found := list_classes(metadata)):
        cfg.MODEL.PSF.CLASSES = [str(one) for one in found]


def classes_from_config(cfg: CfgNode) -> PanopticClasses:
    """The classes of `metadata_from_config`.

    MODEL.PSF.NUM_STUFF_CLASSES 0 removes its stuff classes. Without metadata, NUM_THING_CLASSES and NUM_STUFF_CLASSES
    define the classes, things first.

    Raises:
        UserError: if the keys contradict the metadata or leave no class, or neither defines the classes.
    """
    counts = (cfg.MODEL.PSF.NUM_THING_CLASSES, cfg.MODEL.PSF.NUM_STUFF_CLASSES)
    metadata = metadata_from_config(cfg)
    classes = None if metadata is None else PanopticClasses.from_metadata(metadata)
    if metadata is not None and classes is not None:
        name = metadata.name
        _check_count("NUM_THING_CLASSES", counts[0], classes.thing_ids, name)
        if counts[1] == 0:
            classes = classes._replace(stuff_ids=())
        _check_count("NUM_STUFF_CLASSES", counts[1], classes.stuff_ids, name)
        if not any(classes):
            raise UserError(f'MODEL.PSF.NUM_STUFF_CLASSES is 0 (no stuff), but dataset "{name}" has no things either')
        return classes
    if min(counts) < 0 or sum(counts) == 0:
        raise UserError(
            f"the classes are unknown: no dataset in DATASETS.TRAIN {list(cfg.DATASETS.TRAIN)} or DATASETS.TEST "
            f"{list(cfg.DATASETS.TEST)} has thing or stuff ids in its metadata, and MODEL.PSF.NUM_THING_CLASSES and "
            f"NUM_STUFF_CLASSES are {counts[0]} and {counts[1]}; name a registered dataset or set both keys"
        )
    return PanopticClasses.from_counts(*counts)


def _check_count(key: str, count: int, ids: Sequence[int], dataset: str) -> None:
    if count not in (-1, len(ids)):
        raise UserError(
            f'MODEL.PSF.{key} is {count}, but dataset "{dataset}" has {len(ids)} such classes; set the key to -1 '
            "(counted in the metadata) or name another dataset in DATASETS"
        )
