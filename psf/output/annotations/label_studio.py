"""Label Studio: tasks with predictions (labelstud.io, "Import pre-annotated data into Label Studio").

Masks are regions of the tag BrushLabels, in Label Studio's own encoding; polygons are regions of PolygonLabels, with
points in percent of the width and height.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import XMLGenerator

from psf.data.own_files import write_own_text
from psf.output.annotations.brush_rle import encode_brush
from psf.output.annotations.outlines import join_outlines, trace_outlines
from psf.output.annotations.writer import (
    AnnotatedClass,
    AnnotatedImage,
    Segment,
    ShapeWriter,
    StreamedFile,
    list_segments,
    to_json,
    xml_attributes,
)
from psf.output.task_output import TaskOutput

__all__ = ["LOCAL_FILES", "LabelStudioWriter"]

# Label Studio's address of a file below LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT (labelstud.io, "Local storage").
LOCAL_FILES = "/data/local-files/?d="
_TAGS = {"masks": ("BrushLabels", "brush", "brushlabels"), "polygons": ("PolygonLabels", "polygon", "polygonlabels")}
_MODEL = "psf"


class LabelStudioWriter(ShapeWriter):
    """tasks.json with a task for each image, and config.xml, the labeling config that the predictions refer to.

    The address of an image is a prefix and the path relative to the folder of all images.

    Args:
        image_prefix: None: LOCAL_FILES.
        folder, shapes, overwrite: as for `ShapeWriter`.
    """

    kind = "label-studio"
    _file: StreamedFile

    def __init__(
        self, folder: Path, *, shapes: str = "masks", image_prefix: str | None = None, overwrite: bool = False
    ) -> None:
        super().__init__(folder, shapes=shapes, overwrite=overwrite)
        self.image_prefix = LOCAL_FILES if image_prefix is None else image_prefix

    def files(self, images: Sequence[AnnotatedImage]) -> Iterator[Path]:
        yield self.folder / "tasks.json"
        yield self.folder / "config.xml"

    def open_files(self, classes: list[AnnotatedClass]) -> AbstractContextManager[Any]:
        config = _labeling_config(classes, *_TAGS[self.shapes][:2])
        write_own_text(self.folder / "config.xml", config, overwrite=self.overwrite)
        self._file = StreamedFile(
            self.folder / "tasks.json",
            head="[\n",
            separator=",\n",
            tail=lambda number: "\n]\n",
            overwrite=self.overwrite,
        )
        return self._file

    def add(self, image: AnnotatedImage, output: TaskOutput) -> None:
        regions, scores = [], []
        for segment in list_segments(output):
            value = self._value(segment)
            if value is not None:
                regions.append(self._region(segment, value, output.size))
                scores.append(segment.score)
        mean = sum(scores) / len(scores) if scores else 0.0
        task = {
            "data": {"image": self.image_prefix + quote(image.file_name)},
            "predictions": [{"model_version": _MODEL, "score": mean, "result": regions}],
        }
        self._file.append(to_json(task))

    def _region(self, segment: Segment, value: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
        _, name, kind = _TAGS[self.shapes]
        return {
            "id": f"psf{segment.id}",
            "type": kind,
            "from_name": name,
            "to_name": "image",
            "original_width": size[1],
            "original_height": size[0],
            "image_rotation": 0,
            "score": segment.score,
            "value": {**value, kind: [segment.label]},
        }

    def _value(self, segment: Segment) -> dict[str, Any] | None:
        """None for an empty mask."""
        if self.shapes == "masks":
            return {"format": "rle", "rle": encode_brush(segment.mask)} if segment.mask.any() else None
        points = join_outlines(trace_outlines(segment.mask))
        height, width = segment.mask.shape
        percent = [[round(100 * x / width, 5), round(100 * y / height, 5)] for x, y in points]
        return {"points": percent, "closed": True} if points else None


def _labeling_config(classes: Sequence[AnnotatedClass], tag: str, name: str) -> str:
    stream = io.StringIO()
    xml = XMLGenerator(stream, short_empty_elements=True)
    elements: list[tuple[str, dict[str, str]]] = [
        ("Image", {"name": "image", "value": "$image", "zoom": "true", "zoomControl": "true"}),
        (tag, {"name": name, "toName": "image"}),
    ]
    xml.startElement("View", xml_attributes({}))
    for element, attributes in elements:
        xml.characters("\n  ")
        xml.startElement(element, xml_attributes(attributes))
        if element == tag:
            for one in classes:
                xml.characters("\n    ")
                xml.startElement("Label", xml_attributes({"value": one.label, "background": one.hex_color}))
                xml.endElement("Label")
            xml.characters("\n  ")
        xml.endElement(element)
    xml.characters("\n")
    xml.endElement("View")
    return stream.getvalue() + "\n"
