"""CVAT: the XML "CVAT for images 1.1" (docs.cvat.ai, "XML annotation format"), and labels for its label constructor."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from xml.sax.saxutils import XMLGenerator

import numpy as np

from psf.data.own_files import write_own_text
from psf.output.annotations.outlines import trace_outlines
from psf.output.annotations.writer import (
    AnnotatedClass,
    AnnotatedImage,
    Segment,
    ShapeWriter,
    StreamedFile,
    list_segments,
    xml_attributes,
)
from psf.output.drawing import find_box
from psf.output.task_output import TaskOutput

__all__ = ["CvatWriter", "encode_runs"]

_HEAD = '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'


class CvatWriter(ShapeWriter):
    """annotations.xml with all images, and labels.json, the text for "Raw" in CVAT's label constructor.

    The name of an image is its path relative to the folder of all images, which CVAT shows for an uploaded folder. A
    segment is one mask or, with `shapes` "polygons", polygons with a common group_id. Its score is an attribute.
    """

    kind = "cvat"
    _file: StreamedFile

    def files(self, images: Sequence[AnnotatedImage]) -> Iterator[Path]:
        yield self.folder / "annotations.xml"
        yield self.folder / "labels.json"

    def open_files(self, classes: list[AnnotatedClass]) -> AbstractContextManager[Any]:
        score = {"name": "score", "mutable": False, "input_type": "text", "default_value": "", "values": [""]}
        labels = [{"name": one.label, "color": one.hex_color, "type": "any", "attributes": [score]} for one in classes]
        write_own_text(self.folder / "labels.json", json.dumps(labels, indent=1) + "\n", overwrite=self.overwrite)
        self._number = 0
        self._file = StreamedFile(
            self.folder / "annotations.xml",
            head=_HEAD + _meta(classes),
            separator="",
            tail=lambda number: "</annotations>\n",
            overwrite=self.overwrite,
        )
        return self._file

    def add(self, image: AnnotatedImage, output: TaskOutput) -> None:
        stream, (height, width) = io.StringIO(), output.size
        xml = XMLGenerator(stream, short_empty_elements=False)
        attributes = {"id": self._number, "name": image.file_name, "width": width, "height": height}
        xml.startElement("image", xml_attributes(attributes))
        segments = list(list_segments(output))
        for position, segment in enumerate(segments):
            xml.characters("\n")
            # Of instances that overlap, the best one, which is the first, lies on top.
            z_order = len(segments) - 1 - position if output.task == "instance" else 0
            for name, attributes in self._shapes(segment):
                common = {"label": segment.label, "source": "auto", "occluded": 0}
                xml.startElement(name, xml_attributes(common | attributes | {"z_order": z_order}))
                xml.startElement("attribute", xml_attributes({"name": "score"}))
                xml.characters(f"{segment.score:.3f}")
                xml.endElement("attribute")
                xml.endElement(name)
        xml.endElement("image")
        self._file.append(stream.getvalue() + "\n")
        self._number += 1

    def _shapes(self, segment: Segment) -> Iterator[tuple[str, dict[str, Any]]]:
        box = find_box(segment.mask)
        if box is None:
            return
        if self.shapes == "polygons":
            for points in trace_outlines(segment.mask):
                text = ";".join(f"{x:.2f},{y:.2f}" for x, y in points)
                yield "polygon", {"points": text, "group_id": segment.id}
            return
        rows, columns = box
        yield (
            "mask",
            {
                "rle": ", ".join(map(str, encode_runs(segment.mask[box]))),
                "left": columns.start,
                "top": rows.start,
                "width": columns.stop - columns.start,
                "height": rows.stop - rows.start,
            },
        )


def encode_runs(mask: np.ndarray) -> list[int]:
    """Lengths of the runs of a mask, row by row: first pixels outside (maybe 0), then inside, and so on."""
    flat = mask.ravel()
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs: list[int] = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return [0, *runs] if flat[0] else runs


def _meta(classes: Sequence[AnnotatedClass]) -> str:
    stream = io.StringIO()
    xml = XMLGenerator(stream)

    def write(name: str, content: str | dict[str, Any]) -> None:
        xml.startElement(name, xml_attributes({}))
        if isinstance(content, str):
            xml.characters(content)
        else:
            for key, value in content.items():
                write(key, value)
        xml.endElement(name)

    score = {"name": "score", "mutable": "False", "input_type": "text", "default_value": "", "values": ""}
    for name in ("meta", "task"):
        xml.startElement(name, xml_attributes({}))
    write("name", "psf")
    write("mode", "annotation")
    xml.startElement("labels", xml_attributes({}))
    for one in classes:
        label = {"name": one.label, "color": one.hex_color, "type": "any", "attributes": {"attribute": score}}
        write("label", label)
    for name in ("labels", "task", "meta"):
        xml.endElement(name)
    return stream.getvalue() + "\n"
