"""What is wrong with a panoptic set, as data and as text."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tabulate import tabulate

__all__ = ["FAULT_KINDS", "HISTOGRAM_HEADERS", "ClassCount", "Fault", "ValidationReport", "number_of"]

# In the order of the report. What a kind means is said where it is found.
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
    """kind: one of FAULT_KINDS. where: the file or the entry. detail: found and expected. is_fixable: by `--fix`."""

    kind: str
    where: str
    detail: str
    is_fixable: bool = False


@dataclass
class ClassCount:
    """How much of a class there is; pixels are those of its segments without crowds."""

    id: int
    name: str
    is_thing: bool | None  # None: the JSON does not say
    segments: int = 0
    images: int = 0
    pixels: int = 0


@dataclass
class ValidationReport:
    """content: the JSON as it is. corrected: the same after what can be corrected, or None where nothing was."""

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
        """Kind, number of faults, how many of them can be corrected, and the first few."""
        of_kind: dict[str, list[Fault]] = {kind: [] for kind in FAULT_KINDS}
        for fault in self.faults:
            of_kind[fault.kind].append(fault)
        return [
            (kind, len(faults), sum(fault.is_fixable for fault in faults), faults[:num_examples])
            for kind, faults in of_kind.items()
            if faults
        ]

    def summary(self) -> list[tuple[str, str]]:
        """What the set holds: label and text."""
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
        """The whole report, to be printed."""
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
        """Kinds of what `--fix` leaves as it is -> how often."""
        return Counter(fault.kind for fault in self.faults if not fault.is_fixable)


def number_of(number: int, one: str, many: str) -> str:
    """The number with its noun."""
    return f"{number} {one if number == 1 else many}"


def _first(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
