"""Check the lists of a panoptic JSON against each other, without other files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from psf.data.panoptic_format import SINGULAR, Problem, find_problems, image_key, name_notes, shorten
from psf.data.panoptic_json import read_lists
from psf.errors import UserError
from psf.tools.dataset_validation.report import Fault, number_of

__all__ = ["CheckedLists", "check_lists", "fault_of_problem", "read_panoptic_content"]

_LISTS = ("categories", "images", "annotations")


class CheckedLists(NamedTuple):
    """Valid entries of the lists, each id once, with faults and notes.

    images: by `image_key`; each annotation refers to one of them. categories: also those with a valid id but other
    invalid keys; isthing is None if it is unknown. notes: observations that are not faults.
    """

    categories: list[dict[str, Any]]
    images: dict[int | str, dict[str, Any]]
    annotations: list[dict[str, Any]]
    faults: list[Fault]
    notes: list[str]


def read_panoptic_content(json_file: str) -> dict[str, Any]:
    """Read the JSON; a UserError if it is missing, damaged or not a panoptic JSON."""
    content = read_lists(json_file, _LISTS)
    annotations = [one for one in content["annotations"] if isinstance(one, dict)]
    if annotations and not any("segments_info" in one for one in annotations):
        raise UserError(
            f"{json_file}: not a panoptic JSON, its annotations have no segments_info; psf convert-dataset converts "
            "an instances JSON"
        )
    return content


def check_lists(content: Mapping[str, Any]) -> CheckedLists:
    """Find entries that break the schema, duplicate ids and files, and images without an annotation."""
    faults = [Fault("empty list", key, "the list is empty, expected entries") for key in _LISTS if not content[key]]
    sound = {key: _sound_entries(key, content[key], faults) for key in _LISTS}
    categories = _once(sound["categories"], "id", "duplicate category id", "categories", faults)
    images = _once(sound["images"], "id", "duplicate image id", "images", faults)
    annotations = _once(sound["annotations"], "image_id", "several annotations of an image", "annotations", faults)
    by_key = {image_key(image["id"]): image for image in images}
    known = []
    for one in annotations:
        if image_key(one["image_id"]) in by_key:
            known.append(one)
        else:
            detail = f"image_id {shorten(one['image_id'])} is not among `images`"
            faults.append(Fault("annotation of an unknown image", one["file_name"], detail))
    for key, entries in (("images", images), ("annotations", known)):
        files = Counter(os.path.normpath(one["file_name"]) for one in entries)
        for file, number in files.items():
            if number > 1:
                faults.append(Fault("file listed again", file, f"{number} {key} have this file_name, expected one"))
    bare = len(by_key.keys() - {image_key(one["image_id"]) for one in known})
    unused = number_of(bare, "image has no annotation and is not used", "images have no annotation and are not used")
    notes = [unused] if bare else []
    notes += [f"{number} {note}" for note, number in name_notes([one["name"] for one in categories]).items()]
    return CheckedLists(categories, by_key, known, faults, notes)


def fault_of_problem(where: str, prefix: str, problem: Problem) -> Fault:
    """Convert a problem of an entry to a fault of the report."""
    return Fault("incomplete entry" if problem.is_missing else "wrong value", where, f"{prefix}{problem.text}")


def _sound_entries(key: str, entries: Iterable[Any], faults: list[Fault]) -> list[dict[str, Any]]:
    """Entries without problems; also categories with a valid id, because segments refer to ids."""
    sound = []
    for position, entry in enumerate(entries):
        problems = find_problems(key, entry)
        faults += [fault_of_problem(f"{key}[{position}]", "", problem) for problem in problems]
        wrong = {problem.key for problem in problems}
        if not wrong:
            sound.append(entry)
        elif key == "categories" and not wrong & {"", "id"}:
            right = {name: value for name, value in entry.items() if name not in wrong}
            sound.append({"name": f"category {entry['id']}", "isthing": None, **right})
    return sound


def _once(
    entries: Iterable[dict[str, Any]], key: str, kind: str, name: str, faults: list[Fault]
) -> list[dict[str, Any]]:
    """The first entry of each id. A duplicate is a fault; `--fix` can correct it if it equals the first entry."""
    first: dict[Any, dict[str, Any]] = {}
    for entry in entries:
        known = first.setdefault(image_key(entry[key]), entry)
        if known is not entry:
            is_copy = known == entry
            detail = "a copy of an earlier entry" if is_copy else f"an earlier entry has {key} {shorten(known[key])}"
            faults.append(Fault(kind, f"{SINGULAR[name]} {shorten(entry[key])}", detail, is_copy))
    return list(first.values())
