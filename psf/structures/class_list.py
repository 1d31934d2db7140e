"""The classes of a model as texts (MODEL.PSF.CLASSES), so that a config describes a model without its dataset."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from psf.errors import UserError
from psf.structures.types import CategoryIds, PanopticClasses

__all__ = ["MAX_NAME", "ClassEntry", "list_classes", "metadata_of_classes", "read_classes"]

MAX_CLASSES = 2**16  # contiguous ids are below it; lists of names are as long as the highest one
MAX_NAME = 255  # characters
_TEXT = re.compile(r"(thing|stuff) (\d{1,9}) (\d{1,18}) (-|[0-9a-f]{6}) (.+)", re.DOTALL)
_EXPECTED = "'thing 0 1 dc143c person': the kind, contiguous id, id in the dataset, color (or -) and name"


class ClassEntry(NamedTuple):
    """A class of a model; as text, "KIND CONTIGUOUS_ID CATEGORY_ID RRGGBB NAME"."""

    is_thing: bool
    contiguous_id: int  # the model's
    category_id: int  # the dataset's own
    color: tuple[int, int, int] | None  # RGB, 0 to 255; None: from the palette
    name: str

    @classmethod
    def parse(cls, text: str) -> ClassEntry:
        """Read a text of MODEL.PSF.CLASSES; a UserError if it has another form."""
        found = _TEXT.fullmatch(text)
        if found is None or int(found[2]) >= MAX_CLASSES:
            raise UserError(f"MODEL.PSF.CLASSES has {text[:80]!r}: expected a text such as {_EXPECTED}")
        if len(found[5]) > MAX_NAME:
            raise UserError(
                f"MODEL.PSF.CLASSES has a name of {len(found[5])} characters, {found[5][:40]!r}...: expected at most "
                f"{MAX_NAME}; shorten it in the categories of the dataset"
            )
        red, green, blue = (0, 0, 0) if found[4] == "-" else bytes.fromhex(found[4])
        color = None if found[4] == "-" else (red, green, blue)
        return cls(found[1] == "thing", int(found[2]), int(found[3]), color, found[5])

    def __str__(self) -> str:
        color = "-" if self.color is None else bytes(self.color).hex()
        return f"{'thing' if self.is_thing else 'stuff'} {self.contiguous_id} {self.category_id} {color} {self.name}"


def list_classes(metadata: Any) -> list[ClassEntry]:
    """The classes in Detectron2's metadata, things first; [] if they do not name all classes."""
    classes = PanopticClasses.from_metadata(metadata)
    if classes is None:
        return []
    entries = []
    for ids, kind, own_ids in zip(classes, ("thing", "stuff"), CategoryIds.from_metadata(metadata), strict=True):
        names = metadata.get(f"{kind}_classes") or []
        colors = metadata.get(f"{kind}_colors") or []
        if max(ids, default=-1) >= len(names):
            return []
        for i in ids:
            color = colors[i] if i < len(colors) else None
            red, green, blue = (0, 0, 0) if color is None else (int(value) for value in color)
            own = None if color is None else (red, green, blue)
            entries.append(ClassEntry(kind == "thing", i, own_ids[i], own, str(names[i])))
    return entries


def read_classes(texts: Sequence[str]) -> list[ClassEntry]:
    """The classes of MODEL.PSF.CLASSES.

    Raises:
        UserError: if a text has another form, or two classes of a kind share a contiguous id, a category id or a name.
    """
    entries = [ClassEntry.parse(text) for text in texts]
    seen: dict[tuple[bool, str, int | str], ClassEntry] = {}
    for one in entries:
        for what in ("contiguous_id", "category_id", "name"):
            if (other := seen.setdefault((one.is_thing, what, getattr(one, what)), one)) is not one:
                raise UserError(
                    f"MODEL.PSF.CLASSES has two classes with the same {what.replace('_', ' ')}: '{other}' and '{one}'"
                )
    return entries


def metadata_of_classes(entries: Sequence[ClassEntry]) -> dict[str, Any]:
    """Detectron2's metadata for these classes, in the form of its panoptic sets.

    Things and stuff share their lists of names and colours, unless an id means a thing class and a stuff class: then
    Detectron2's "separated" form, in which stuff 0 is all things.
    """
    by_kind = {kind: {one.contiguous_id: one for one in entries if one.is_thing is kind} for kind in (True, False)}
    is_separated = bool(by_kind[True].keys() & by_kind[False].keys())
    metadata: dict[str, Any] = {"ignore_label": 255, "label_divisor": 1000}
    for kind, key in ((True, "thing"), (False, "stuff")):
        listed = by_kind[kind] if is_separated else {**by_kind[True], **by_kind[False]}
        size = max(listed, default=-1) + 1
        names = [listed[i].name if i in listed else "things" if i == 0 else f"class {i}" for i in range(size)]
        metadata[f"{key}_classes"] = names
        if listed and all(one.color is not None for one in listed.values()):
            colors = [listed[i].color if i in listed else (0, 0, 0) for i in range(size)]
            metadata[f"{key}_colors"] = [list(color or ()) for color in colors]
        own = {one.category_id: one.contiguous_id for one in by_kind[kind].values()}
        metadata[f"{key}_dataset_id_to_contiguous_id"] = own
    return metadata
