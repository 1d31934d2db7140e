"""Validate a panoptic set, and correct its JSON where that is safe."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from tqdm.contrib.concurrent import thread_map

from psf.data.dataset_check import check_dataset
from psf.data.files import sha256_of, write_text
from psf.data.panoptic_format import image_key
from psf.data.registration import PanopticSet
from psf.errors import UserError
from psf.progress import Progress
from psf.tools.dataset_validation.files import CheckedAnnotation, check_annotation
from psf.tools.dataset_validation.lists import check_lists, read_panoptic_content
from psf.tools.dataset_validation.report import (
    ClassCount,
    ValidationReport,
    check_corrected_target,
    corrected_text,
    number_of,
)

__all__ = ["places_of_dataset", "shared_images", "validate_panoptic", "write_corrected"]


def validate_panoptic(
    json_file: str,
    png_root: str,
    image_root: str,
    *,
    workers: int | None = None,
    show_progress: bool = False,
) -> ValidationReport:
    """Check a panoptic JSON, its PNGs and its images against each other.

    Every PNG and every image is decoded, as in training. Crowds, void and the classes are counted.

    Args:
        json_file: JSON in COCO's panoptic format.
        png_root: folder of the PNGs.
        image_root: folder of the images.
        workers: threads; None: as many as `ThreadPoolExecutor` has by default.
        show_progress: whether to show a progress bar on stderr.

    Raises:
        UserError: if the JSON is missing, damaged or not panoptic; any other problem is a fault in the report.
    """
    content = read_panoptic_content(json_file)
    lists = check_lists(content)
    is_thing = {category["id"]: _as_bool(category["isthing"]) for category in lists.categories}
    classes = {one["id"]: ClassCount(one["id"], one["name"], is_thing[one["id"]]) for one in lists.categories}
    report = ValidationReport(
        json_file, content, faults=list(lists.faults), classes=list(classes.values()), notes=list(lists.notes)
    )

    def check(annotation: dict[str, Any]) -> CheckedAnnotation:
        image = lists.images[image_key(annotation["image_id"])]
        return check_annotation(annotation, image, is_thing, png_root, image_root)

    better: dict[int, dict[str, Any]] = {}  # by id() of an image's or an annotation's entry
    checked = thread_map(
        check, lists.annotations, tqdm_class=Progress, max_workers=workers, disable=not show_progress, unit="image"
    )
    for annotation, one in zip(lists.annotations, checked, strict=True):
        if any(fault.is_fixable for fault in one.faults):
            image = lists.images[image_key(annotation["image_id"])]
            better[id(annotation)] = one.annotation
            better[id(image)] = image if one.size is None else {**image, "height": one.size[0], "width": one.size[1]}
        _count(one, report, classes)
    report.notes += _notes_on_images(checked)
    if any(fault.is_fixable for fault in report.faults):
        lists_of_json = ("images", "annotations", "categories")
        report.corrected = {**content, **{key: _without_copies(content[key], better) for key in lists_of_json}}
    return report


def _count(one: CheckedAnnotation, report: ValidationReport, classes: Mapping[int, ClassCount]) -> None:
    """Add one image to the counts of the set and of its classes (by category id)."""
    report.faults += one.faults
    report.num_segments += len(one.annotation["segments_info"])
    report.num_crowds += one.num_crowds
    report.num_pixels += one.num_pixels
    report.num_void += one.num_void
    for category_id in one.segments.keys() & classes.keys():
        classes[category_id].segments += one.segments[category_id]
        classes[category_id].images += 1
        classes[category_id].pixels += one.areas[category_id]


def _notes_on_images(checked: Sequence[CheckedAnnotation]) -> list[str]:
    notes = []
    if num_all_void := sum(0 < one.num_pixels == one.num_void for one in checked):
        notes.append(number_of(num_all_void, "image is entirely void", "images are entirely void"))
    if num_turned := sum(one.is_turned for one in checked):
        turned = number_of(num_turned, "image is turned", "images are turned")
        notes.append(f"{turned} by EXIF orientation, as in training; sizes and PNGs belong to the image as turned")
    return notes


def _as_bool(flag: int | None) -> bool | None:
    return None if flag is None else bool(flag)


def places_of_dataset(name: str) -> tuple[str, str, str]:
    """JSON, PNG folder and image folder of a registered set.

    Raises:
        UserError: if the set does not exist, is not panoptic, or its files are missing.
    """
    check_dataset(name)
    metadata = MetadataCatalog.get(name)
    if not metadata.get("panoptic_json"):
        raise UserError(f"dataset {name!r} has no panoptic_json in its metadata, so there is nothing to validate")
    if metadata.get("is_generated", False):
        DatasetCatalog.get(name)  # writes the set if it does not exist
    return metadata.panoptic_json, metadata.panoptic_root, metadata.image_root


def write_corrected(report: ValidationReport, target: Path) -> Counter[str]:
    """Write the corrected JSON to another file.

    Returns:
        Kind of fault -> number of corrected faults; `report.unfixed()` has the others.

    Raises:
        UserError: if the target exists and is not an earlier correction of the same JSON.
    """
    check_corrected_target(target, report.json_file)
    try:
        text = corrected_text(report.corrected or report.content, report.json_file)
    except RecursionError as error:
        raise UserError(f"{report.json_file}: lists or objects are nested too deeply to be written again") from error
    write_text(target, text)
    return Counter(fault.kind for fault in report.faults if fault.is_fixable)


def shared_images(sets: Sequence[PanopticSet]) -> list[str]:
    """A note for each two sets that have images in common: files with the same content, whatever their names are.

    A model that was trained on one of the sets has seen these images of the other.
    """
    files = [[file for file in _image_files(one) if os.path.isfile(file)] for one in sets]
    sizes = Counter(size for of_set in files for size in {os.path.getsize(file) for file in of_set})
    known = [
        {sha256_of(file): file for file in of_set if sizes[os.path.getsize(file)] > 1} for of_set in files
    ]  # of files whose size occurs in another set, too
    notes = []
    for second, others in enumerate(known):
        for first in range(second):
            shared = [file for digest, file in others.items() if digest in known[first]]
            if shared:
                number = number_of(len(shared), "image is", "images are")
                examples = ", ".join(os.path.basename(file) for file in shared[:3])
                names = f"{sets[first].name} and {sets[second].name}"
                notes.append(f"{number} in both {names} ({examples}{', ...' if len(shared) > 3 else ''})")
    return notes


def _image_files(one: PanopticSet) -> Iterator[str]:
    for image in check_lists(read_panoptic_content(one.json_file)).images.values():
        yield os.path.join(one.image_root, image["file_name"])


def _without_copies(entries: list[Any], better: Mapping[int, dict[str, Any]]) -> list[Any]:
    """The entries, or their corrections; copies of an earlier entry are dropped."""
    first: dict[str, Any] = {}
    for entry in entries:
        first.setdefault(json.dumps(entry, sort_keys=True), entry)
    return [better.get(id(entry), entry) for entry in first.values()]
