"""The common part of all annotation formats: images, segments, files that grow image by image, checks."""

from __future__ import annotations

import abc
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, ClassVar, NamedTuple

import numpy as np

from psf.atomic_files import naming_full_disk
from psf.data.files import make_folder, remove_stale_drafts
from psf.data.own_files import check_replaceable, own_path
from psf.data.panoptic_format import distinct_names
from psf.errors import UserError, escape_controls, printable
from psf.output.colors import class_color
from psf.output.task_output import TaskOutput
from psf.structures import ClassEntry, list_classes

__all__ = [
    "SHAPES",
    "AnnotatedClass",
    "AnnotatedImage",
    "AnnotationWriter",
    "Segment",
    "ShapeWriter",
    "StreamedFile",
    "annotated_classes",
    "list_segments",
    "to_json",
    "xml_attributes",
]

SHAPES = ("masks", "polygons")
WAY_OUT = "choose another folder for the results (--output), or use --overwrite"


class AnnotatedImage(NamedTuple):
    """An image of a run."""

    path: Path  # of the file
    name: str  # NAME of its own result files; no two images of a run have the same
    file_name: str  # path relative to the folder of all images, with slashes
    image_id: int | str  # for COCO's formats


class AnnotatedClass(NamedTuple):
    """A class of the model."""

    label: str  # its name; with the category id if another class has this name
    category_id: int  # the dataset's own
    is_thing: bool
    color: tuple[int, int, int]  # RGB, 0 to 255

    @property
    def hex_color(self) -> str:
        """Such as #ff0000."""
        return f"#{bytes(self.color).hex()}"


class Segment(NamedTuple):
    """A segment or an instance of an image."""

    id: int  # from 1
    label: str
    category_id: int
    is_thing: bool
    score: float
    mask: np.ndarray  # (H, W) bool


def list_segments(output: TaskOutput) -> Iterator[Segment]:
    """The segments of a panoptic result, or the instances of an instance result, one after the other."""
    entries = list_classes(output.metadata)
    labels = dict(zip(((one.is_thing, one.contiguous_id) for one in entries), _labels(entries), strict=True))
    for record in output.records():
        is_thing = record.get("isthing", True)
        yield Segment(
            id=record["id"],
            label=labels.get((is_thing, record["contiguous_id"]), record["class"]),
            category_id=record["category_id"],
            is_thing=is_thing,
            score=record.get("score", 1.0),
            mask=output.mask(record),
        )


def annotated_classes(metadata: Any) -> list[AnnotatedClass]:
    """The classes in Detectron2's metadata, things first."""
    entries = list_classes(metadata)
    colors = [class_color(metadata, one.contiguous_id, one.is_thing) for one in entries]
    return [
        AnnotatedClass(label, one.category_id, one.is_thing, (color[0], color[1], color[2]))
        for label, one, color in zip(_labels(entries), entries, colors, strict=True)
    ]


def _labels(entries: Sequence[ClassEntry]) -> list[str]:
    names = [escape_controls(one.name) for one in entries]
    return distinct_names(names, [one.category_id for one in entries])


class StreamedFile(AbstractContextManager["StreamedFile"]):
    """A text file in UTF-8 that grows by whole parts, and takes its place when it is finished.

    After an error or Ctrl-C it has the parts that were written. Without a part, or if its end cannot be written (a full
    disk), the earlier file stays.

    Args:
        target: the final path; an earlier file of psf is replaced.
        head: the beginning.
        separator: between two parts.
        tail: gives the end; its argument is the number of parts.
        overwrite: as for `psf.data.own_files.own_path`.
    """

    def __init__(
        self, target: Path, *, head: str, separator: str, tail: Callable[[int], str], overwrite: bool = False
    ) -> None:
        self._target, self._head, self._separator, self._tail = target, head, separator, tail
        self._overwrite = overwrite
        self._draft = ExitStack()
        self._file: BinaryIO
        self._end = (0, 0)  # bytes and parts that are whole

    def __enter__(self) -> StreamedFile:
        path = self._draft.enter_context(own_path(self._target, overwrite=self._overwrite))
        self._file = path.open("wb")
        self._end = (self._file.write(self._head.encode()), 0)
        return self

    def append(self, part: str) -> None:
        """Add a part."""
        number = self._end[1]
        with naming_full_disk(self._target):
            self._file.write(((self._separator if number else "") + part).encode())
        self._end = (self._file.tell(), number + 1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._end[1]:
            with suppress(_NothingWritten), self._draft, self._file:
                raise _NothingWritten
            return
        with self._draft, self._file:  # an error here, such as a full disk, discards the draft
            position, number = self._end
            self._file.seek(position)
            self._file.truncate()
            self._file.write(self._tail(number).encode())


class _NothingWritten(Exception):
    """Makes `own_path` discard a draft."""


class AnnotationWriter(abc.ABC):
    """Writes the results of a run in the format of an annotation tool.

    First `check`, then `writing`, a context in which `add` is called for each image.

    Args:
        folder: of this format, below the folder of results.
        overwrite: True: files that psf has not written may be replaced, too.

    Attributes:
        kind: its name as a value of --save, and of its folder.
        tasks: results that the format can hold.
        folder: as given.
    """

    kind: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]] = ("panoptic", "instance")

    def __init__(self, folder: Path, *, overwrite: bool = False) -> None:
        self.folder, self.overwrite = folder, overwrite

    @abc.abstractmethod
    def files(self, images: Sequence[AnnotatedImage]) -> Iterator[Path]:
        """The files that a run with these images writes."""

    def image_folders(self) -> list[Path]:
        """Folders that get images or PNGs, which must not be inputs of the run."""
        return []

    def check(self, images: Sequence[AnnotatedImage]) -> None:
        """Check that all files may be written.

        Raises:
            UserError: naming a file that psf has not written, a folder that is a link or a file, or an image that the
                format cannot hold.
        """
        files = list(self.files(images))
        folders = {self.folder}
        for folder in {file.parent for file in files}:
            while folder != self.folder:
                folders.add(folder)
                folder = folder.parent
        for folder in sorted(folders):
            if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir()):
                raise UserError(f"{folder} exists, and is a link or no folder: move it away, or change --output")
        for image in images:
            _check_encodable(image)
        check_replaceable(files, overwrite=self.overwrite, way_out=WAY_OUT)

    def writing(self, metadata: Any) -> AbstractContextManager[Any]:
        """A context for `add`; it writes what the format has beside the images.

        Args:
            metadata: Detectron2's, of the model's classes.
        """
        make_folder(self.folder, "the folder of the results,")
        remove_stale_drafts(self.folder)
        return self.open_files(annotated_classes(metadata))

    @abc.abstractmethod
    def open_files(self, classes: list[AnnotatedClass]) -> AbstractContextManager[Any]:
        """The context of `writing`; the folder exists."""

    @abc.abstractmethod
    def add(self, image: AnnotatedImage, output: TaskOutput) -> None:
        """Write the result of an image.

        Raises:
            UserError: if the format cannot hold it; then the files are as before.
        """


class ShapeWriter(AnnotationWriter):
    """Writes a format that has both masks and polygons.

    Args:
        shapes: "masks": exact; "polygons": simplified, see `trace_outlines`.
        folder, overwrite: as for `AnnotationWriter`.
    """

    def __init__(self, folder: Path, *, shapes: str = "masks", overwrite: bool = False) -> None:
        super().__init__(folder, overwrite=overwrite)
        if shapes not in SHAPES:
            raise UserError(f"shapes is {shapes!r}: expected one of {', '.join(SHAPES)}")
        self.shapes = shapes


def _check_encodable(image: AnnotatedImage) -> None:
    """Names of files may have bytes that are not UTF-8; formats of text cannot hold these, nor control characters."""
    text = image.file_name + image.name
    if escape_controls(text) != text or any("\ud800" <= character < "\ue000" for character in text):
        raise UserError(f"{printable(image.path)}: its name has control characters or is not in UTF-8: rename it")


def xml_attributes(attributes: Mapping[str, Any]) -> Any:
    """Attributes of an element for `XMLGenerator`."""
    return {key: str(value) for key, value in attributes.items()}


def to_json(value: Any) -> str:
    """JSON in one line, without spaces: masks have many numbers."""
    return json.dumps(value, separators=(",", ":"))
