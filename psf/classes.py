"""Which classes are things and which are stuff, and their ids, as a data set's metadata says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog

__all__ = ["PanopticClasses", "classes_from_config"]


class PanopticClasses(NamedTuple):
    """Contiguous ids of the model's thing classes and stuff classes, in the model's order.

    In Detectron2's panoptic metadata both kinds share one id space, in any order. In its "separated" metadata stuff has
    ids of its own, from 1, with 0 for all things together; the semantic scores then have a channel for that.
    """

    thing_ids: tuple[int, ...]
    stuff_ids: tuple[int, ...]

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> PanopticClasses | None:
        """Read the id maps of a data set; None if it has none."""
        thing_map = metadata.get("thing_dataset_id_to_contiguous_id")
        stuff_map = metadata.get("stuff_dataset_id_to_contiguous_id")
        if thing_map is None and stuff_map is None:
            return None
        thing_map, stuff_map = thing_map or {}, stuff_map or {}
        thing_ids = tuple(sorted(set(thing_map.values())))
        # Metadata for semantic evaluation list the things among the stuff, too.
        stuff_ids = tuple(sorted({contiguous for i, contiguous in stuff_map.items() if i not in thing_map}))
        if metadata.get("stuff_classes", [None])[:1] == ["things"]:
            stuff_ids = tuple(i for i in stuff_ids if i != 0)
        return cls(thing_ids, stuff_ids)

    @classmethod
    def from_counts(cls, num_things: int, num_stuff: int) -> PanopticClasses:
        """Ids from 0: things first, then stuff."""
        return cls(tuple(range(num_things)), tuple(range(num_things, num_things + num_stuff)))

    @property
    def is_separated(self) -> bool:
        """Whether an id can mean a thing class and a stuff class."""
        return bool(set(self.thing_ids) & set(self.stuff_ids))

    @property
    def semantic_channels(self) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """Channels of the thing classes and of the stuff classes in the semantic scores, and the number of channels."""
        if self.is_separated:
            return (0,) * len(self.thing_ids), self.stuff_ids, max(self.stuff_ids) + 1
        return self.thing_ids, self.stuff_ids, max(self.thing_ids + self.stuff_ids) + 1


def classes_from_config(cfg: CfgNode) -> PanopticClasses:
    """The classes of the first data set in DATASETS.TRAIN, then DATASETS.TEST, whose metadata has any.

    MODEL.PSF.NUM_STUFF_CLASSES 0 leaves its stuff out. Without such a data set, NUM_THING_CLASSES and
    NUM_STUFF_CLASSES count the classes: things first.

    Raises:
        ValueError: if the keys contradict the metadata or leave no class, or neither says how many there are.
    """
    wanted = (cfg.MODEL.PSF.NUM_THING_CLASSES, cfg.MODEL.PSF.NUM_STUFF_CLASSES)
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        classes = PanopticClasses.from_metadata(MetadataCatalog.get(name))
        if classes is None:
            continue
        _check_count("NUM_THING_CLASSES", wanted[0], classes.thing_ids, name)
        if wanted[1] == 0:
            classes = classes._replace(stuff_ids=())
        _check_count("NUM_STUFF_CLASSES", wanted[1], classes.stuff_ids, name)
        if not any(classes):
            raise ValueError(
                f'MODEL.PSF.NUM_STUFF_CLASSES is 0 (stuff is left out), and data set "{name}" has no things either'
            )
        return classes
    if min(wanted) < 0 or sum(wanted) == 0:
        raise ValueError(
            f"the classes are not known: no data set in DATASETS.TRAIN {list(cfg.DATASETS.TRAIN)} or DATASETS.TEST "
            f"{list(cfg.DATASETS.TEST)} has thing or stuff ids in its metadata, and MODEL.PSF.NUM_THING_CLASSES and "
            f"NUM_STUFF_CLASSES are {wanted[0]} and {wanted[1]}; name a registered data set or set both keys"
        )
    return PanopticClasses.from_counts(*wanted)


def _check_count(key: str, wanted: int, ids: Sequence[int], dataset: str) -> None:
    if wanted not in (-1, len(ids)):
        raise ValueError(
            f'MODEL.PSF.{key} is {wanted}, but data set "{dataset}" has {len(ids)} such classes; set the key to -1 '
            "(counted in the metadata) or name another data set in DATASETS"
        )
