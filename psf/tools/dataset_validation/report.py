"""The report on a panoptic set: faults and class counts, as data and as text."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from psf.data.own_files import begins_with
from psf.errors import UserError

__all__ = [
    "BEGINNING_OF_REPORT",
    "FAULT_KINDS",
    "HISTOGRAM_HEADERS",
    "ClassCount",
    "Fault",
    "ValidationReport",
    "check_corrected_target",
    "check_report_target",
    "corrected_text",
    "number_of",
]

BEGINNING_OF_REPORT = '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta name="generator" content="psf">'
_SOURCE = "psf_corrected_from"  # first key of a corrected JSON: the name of its source file


def check_report_target(target: Path) -> None:
    """Raise a UserError if the target exists and is not an earlier report."""
    if _is_foreign(target, BEGINNING_OF_REPORT):
        raise UserError(
            f"--html {target} exists and is not a report of psf, so it is not overwritten; name another file"
        )


def check_corrected_target(target: Path, json_file: str) -> None:
    """Raise a UserError if the target is the JSON itself, or exists and is not an earlier correction of it."""
    if target.exists() and Path(json_file).exists() and target.samefile(json_file):
        raise UserError(f"--fix {target} is the source JSON, which is not overwritten; name another file")
    if _is_foreign(target, _beginning_of_corrected(json_file)):
        name = Path(json_file).name
        raise UserError(
            f"--fix {target} exists and is not an earlier correction of {name}, so it is not overwritten; "
            "name another file"
        )


def corrected_text(content: Mapping[str, Any], json_file: str) -> str:
    """The text of a corrected JSON; it starts with its source, for `check_corrected_target`."""
    others = {key: value for key, value in content.items() if key != _SOURCE}
    return f"{_beginning_of_corrected(json_file)}, {json.dumps(others)[1:]}"


def _beginning_of_corrected(json_file: str) -> str:
    return json.dumps({_SOURCE: Path(json_file).name})[:-1]


def _is_foreign(target: Path, beginning: str) -> bool:
    """Whether the target exists without this beginning; anything but a regular file is foreign."""
    return os.path.lexists(target) and not begins_with(target, beginning)


# In the order of the report.
FAULT_KINDS = (
    "empty list",
    "incomplete entry",
    "wrong value",
    "duplicate category id",
    "duplicate image id",
    "several annotations of an image",
    "annotation of an unknown image",
    "file listed again",
    "missing image",
    "unreadable image",
    "missing PNG",
    "unreadable PNG",
    "size mismatch",
    "PNG of another image?",
    "id in the PNG, not in the JSON",
    "segment of the JSON, not in the PNG",
    "empty segment",
    "segment id out of range",
    "duplicate segment id",
    "unknown category",
    "stuff class in several segments",
    "wrong area",
    "wrong box",
)

HISTOGRAM_HEADERS = ("id", "class", "kind", "segments", "images", "% of pixels")


class Fault(NamedTuple):
    """A fault of a panoptic set.

    kind: one of FAULT_KINDS. where: the file or the entry. detail: found and expected. is_fixable: by `--fix`.
    """

    kind: str
    where: str
    detail: str
    is_fixable: bool = False


@dataclass
class ClassCount:
    """Counts of a class; pixels exclude crowds."""

    id: int
    name: str
    is_thing: bool | None  # None: unknown
    segments: int = 0
    images: int = 0
    pixels: int = 0


@dataclass
class ValidationReport:
    """The report on a panoptic set.

    content: the original JSON. corrected: the JSON with all corrections; None if there are none.
    """

    json_file: str
    content: dict[str, Any]
    corrected: dict[str, Any] | None = None
    faults: list[Fault] = field(default_factory=list)
    classes: list[ClassCount] = field(default_factory=list)
    num_segments: int = 0
    num_crowds: int = 0
    num_pixels: int = 0
    num_void: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return not self.faults

    def fault_table(self, num_examples: int) -> list[tuple[str, int, int, list[Fault]]]:
        """Kind, number of faults, number of fixable faults, and the first few faults."""
        of_kind: dict[str, list[Fault]] = {kind: [] for kind in FAULT_KINDS}
        for fault in self.faults:
            of_kind[fault.kind].append(fault)
        return [
            (kind, len(faults), sum(fault.is_fixable for fault in faults), faults[:num_examples])
            for kind, faults in of_kind.items()
            if faults
        ]

    def summary(self) -> list[tuple[str, str]]:
        """Statistics of the set: label and text."""
        void = 100 * self.num_void / max(self.num_pixels, 1)
        empty = [one.name for one in self.classes if not one.segments]
        return [
            ("images", f"{len(self.content['images'])}"),
            ("annotations", f"{len(self.content['annotations'])}"),
            ("segments", f"{self.num_segments}"),
            ("crowds", f"{self.num_crowds}"),
            ("void", f"{void:.2f} % of the pixels"),
            ("classes", f"{len(self.classes)}, {sum(one.is_thing is True for one in self.classes)} of them things"),
            *([("classes without a segment", _first(empty))] if empty else []),
            *(("note", note) for note in self.notes),
        ]

    def histogram(self) -> list[list[Any]]:
        """Rows of id, name, kind, segments, images, share of the labelled pixels in percent."""
        total = max(sum(one.pixels for one in self.classes), 1)
        kinds = {True: "thing", False: "stuff", None: "?"}
        return [
            [one.id, one.name, kinds[one.is_thing], one.segments, one.images, 100 * one.pixels / total]
            for one in self.classes
        ]

    def text(self, *, num_examples: int = 3) -> str:
        """The whole report as text."""
        parts = [
            tabulate(self.summary(), tablefmt="plain"),
            tabulate(self.histogram(), HISTOGRAM_HEADERS, floatfmt=".2f"),
        ]
        for kind, number, fixable, examples in self.fault_table(num_examples):
            lines = [f"{kind}: {number}" + (f" ({fixable} can be corrected)" if fixable else "")]
            lines += [f"  {fault.where}: {fault.detail}" for fault in examples]
            lines += [f"  ... and {number - len(examples)} more"] if number > len(examples) else []
            parts.append("\n".join(lines))
        parts.append(number_of(len(self.faults), "fault", "faults") if self.faults else "no faults")
        return "\n\n".join(parts)

    def unfixed(self) -> Counter[str]:
        """Kind of fault -> number of faults that `--fix` does not correct."""
        return Counter(fault.kind for fault in self.faults if not fault.is_fixable)


def number_of(number: int, one: str, many: str) -> str:
    """The number with its noun."""
    return f"{number} {one if number == 1 else many}"


def _first(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
