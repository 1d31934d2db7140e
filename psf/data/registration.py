"""Register a COCO panoptic set with one line: in Python, on the command line or in a config."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from psf.data.panoptic_json import load_panoptic_json, panoptic_metadata, read_categories
from psf.errors import UserError
from psf.meta_arch import StoredMetadata
from psf.structures import metadata_of_classes, read_classes

__all__ = ["PanopticSet", "register_from_config", "register_panoptic"]

_FROM_CATEGORIES = frozenset(panoptic_metadata([]))


class PanopticSet(NamedTuple):
    """A dataset's name and paths; as text, NAME=JSON,PNGS,IMAGES."""

    name: str
    json_file: str
    png_root: str
    image_root: str

    @classmethod
    def parse(cls, text: str) -> PanopticSet:
        """NAME=JSON,PNGS,IMAGES -> the set, with absolute paths.

        Raises:
            UserError: if the text has another form, or the name is not valid.
        """
        name, _, places = text.partition("=")
        paths = places.split(",")
        if not name or len(paths) != 3 or not all(paths):
            commas = "; paths must not contain commas: rename the path, or make a link" if len(paths) > 3 else ""
            raise UserError(
                f"--register (DATASETS.PSF_REGISTER): found {text!r}, expected NAME=JSON,PNGS,IMAGES: the panoptic "
                f"JSON, the folder of its PNGs and the folder of the images{commas}"
            )
        _check_name(name)
        return cls(name, *(_absolute(path) for path in paths))

    def __str__(self) -> str:
        return f"{self.name}={self.json_file},{self.png_root},{self.image_root}"


def register_panoptic(
    name: str, json_file: str | os.PathLike[str], png_root: str | os.PathLike[str], image_root: str | os.PathLike[str]
) -> None:
    """Register a panoptic set in COCO's format in Detectron2's catalogs.

    Names, colours, ids and the number of classes come from the JSON's `categories`. A class's contiguous id is its
    position there. Ids may have gaps, things need not come first, and a set may have only things or only stuff. The
    files are read on first use. Registering the same set again has no effect.

    Args:
        name: for DATASETS.TRAIN and DATASETS.TEST. File names in OUTPUT_DIR contain it, so it consists of letters,
            digits, "_", "-" and ".", and does not begin with "-" or ".".
        json_file: JSON in COCO's panoptic format.
        png_root: folder of the panoptic PNGs, the annotations' `file_name`; these may have sub-folders.
        image_root: folder of the images, the images' own `file_name`, of any kind that Pillow reads.

    Raises:
        UserError: if the name is not valid, or is used by another dataset.
    """
    _check_name(name)
    paths = dict(
        panoptic_json=_absolute(json_file), panoptic_root=_absolute(png_root), image_root=_absolute(image_root)
    )
    known = MetadataCatalog.get(name)
    is_known = len(vars(known)) > 1 and not isinstance(known, StoredMetadata)
    if name in DatasetCatalog or is_known:  # `get` alone creates an entry, the name
        before = {key: vars(known).get(key) for key in paths}
        if isinstance(known, _PanopticMetadata) and before == paths:
            return
        place = known.get("panoptic_json") or "Detectron2 or another plugin"
        raise UserError(f'a dataset "{name}" is registered already (from {place}): choose another name for this one')
    DatasetCatalog.register(name, partial(load_panoptic_json, *paths.values()))
    MetadataCatalog[name] = _PanopticMetadata(name=name, **paths)


def register_from_config(cfg: CfgNode, flags: Sequence[str] = ()) -> None:
    """Register the sets of DATASETS.PSF_REGISTER and of `flags`; a flag replaces a set of the same name.

    The key then holds all sets, with absolute paths, so that the saved config works from any folder. A set whose JSON
    is not on this machine has the classes of MODEL.PSF.CLASSES, which is enough to use a trained model.

    Args:
        cfg: is changed in place.
        flags: values of `--register`, NAME=JSON,PNGS,IMAGES.

    Raises:
        UserError: as `PanopticSet.parse` and `register_panoptic`; if two sets have the same name.
    """
    sets = {**_by_name(cfg.DATASETS.PSF_REGISTER), **_by_name(flags)}
    for one in sets.values():
        register_panoptic(*one)
        metadata = MetadataCatalog.get(one.name)
        if cfg.MODEL.PSF.CLASSES and "://" not in one.json_file and not os.path.exists(one.json_file):
            vars(metadata).update(metadata_of_classes(read_classes(cfg.MODEL.PSF.CLASSES)))
    cfg.DATASETS.PSF_REGISTER = [str(one) for one in sets.values()]


class _PanopticMetadata(Metadata):
    """Metadata that read the JSON's categories when an entry derived from them is first accessed."""

    def __getattr__(self, key: str) -> Any:
        if key not in _FROM_CATEGORIES:
            return super().__getattr__(key)
        self.__dict__.update(panoptic_metadata(read_categories(self.panoptic_json)))
        return self.__dict__[key]

    def as_dict(self) -> dict[str, Any]:
        _ = self.thing_classes
        return super().as_dict()


def _check_name(name: str) -> None:
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(
            f"{name!r} cannot be the name of a dataset (--register, DATASETS.PSF_REGISTER), because file names "
            'contain it; expected letters, digits, "_", "-" and ".", without "-" or "." at the beginning'
        )


def _by_name(texts: Sequence[str]) -> dict[str, PanopticSet]:
    sets: dict[str, PanopticSet] = {}
    for text in texts:
        one = PanopticSet.parse(text)
        if sets.setdefault(one.name, one) != one:
            raise UserError(
                f"--register (DATASETS.PSF_REGISTER): two sets have the same name: {sets[one.name]} and {one}"
            )
    return sets


def _absolute(path: str | os.PathLike[str]) -> str:
    """The absolute path; an address (s3://...) stays unchanged."""
    text = os.fspath(path)
    return text if "://" in text else os.path.abspath(os.path.expanduser(text))
