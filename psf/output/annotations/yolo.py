"""YOLO's text format of segments (docs.ultralytics.com, "Instance Segmentation Datasets Overview")."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import yaml

from psf.data.files import make_folder
from psf.data.own_files import write_own_text
from psf.errors import UserError
from psf.output.annotations.outlines import join_outlines, trace_outlines
from psf.output.annotations.writer import WAY_OUT, AnnotatedClass, AnnotatedImage, AnnotationWriter, list_segments
from psf.output.task_output import TaskOutput

__all__ = ["YoloWriter"]

logger = logging.getLogger(__name__)


class YoloWriter(AnnotationWriter):
    """data.yaml, labels/train/NAME.txt for each image, and images/train/NAME.*, links to the images.

    YOLO finds the labels of an image by the name of the image, with `labels` in the place of `images`. A line has the
    class, counted from 0, and a polygon in shares of the width and height. Classes are the things. The parts of a thing
    are joined by lines without area.
    """

    kind = "yolo"

    def files(self, images: Sequence[AnnotatedImage]) -> Iterator[Path]:
        yield self.folder / "data.yaml"
        for image in images:
            yield self._label_file(image)

    def image_folders(self) -> list[Path]:
        return [self.folder / "images" / "train"]

    def check(self, images: Sequence[AnnotatedImage]) -> None:
        super().check(images)
        for image in images:
            link = self._link(image)
            if os.path.lexists(link) and os.path.realpath(link) != os.path.realpath(image.path):
                raise UserError(f"{link} exists, and is no link to {image.path}: move it away, or change --output")
        folder = self.folder / "images"
        if any(one.is_symlink() for one in (folder, folder / "train")):
            raise UserError(f"{folder} has a link in the place of a folder: move it away; {WAY_OUT}")

    def open_files(self, classes: list[AnnotatedClass]) -> AbstractContextManager[Any]:
        names = [one.label for one in classes if one.is_thing]
        self._index_of = {name: position for position, name in enumerate(names)}
        # Without `path`, the other paths are relative to the folder of this file.
        content = {"train": "images/train", "val": "images/train", "nc": len(names), "names": dict(enumerate(names))}
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        write_own_text(self.folder / "data.yaml", text, overwrite=self.overwrite)
        for kind in ("labels", "images"):
            make_folder(self.folder / kind / "train", f"the folder of {kind},")
        self._can_link = True
        return nullcontext()

    def add(self, image: AnnotatedImage, output: TaskOutput) -> None:
        height, width = output.size
        lines = []
        for segment in list_segments(output):
            points = join_outlines(trace_outlines(segment.mask)) if segment.is_thing else []
            if points:
                numbers = [f"{value:.6f}" for x, y in points for value in (x / width, y / height)]
                lines.append(" ".join([str(self._index_of[segment.label]), *numbers]))
        text = "".join(f"{line}\n" for line in lines)
        write_own_text(self._label_file(image), text, overwrite=self.overwrite)
        self._make_link(image)

    def _make_link(self, image: AnnotatedImage) -> None:
        link = self._link(image)
        if os.path.lexists(link) or not self._can_link:
            return
        source = os.path.join(os.path.realpath(image.path.parent), image.path.name)
        try:
            link.symlink_to(os.path.relpath(source, os.path.realpath(link.parent)))
        except OSError as error:  # such as file systems without links
            self._can_link = False
            logger.warning("%s: no link to the image can be made (%s): copy the images there", link, error)

    def _label_file(self, image: AnnotatedImage) -> Path:
        return self.folder / "labels" / "train" / f"{image.name}.txt"

    def _link(self, image: AnnotatedImage) -> Path:
        return self.folder / "images" / "train" / f"{image.name}{image.path.suffix}"
