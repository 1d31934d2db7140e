"""Results in the formats of annotation tools, written image by image."""

from pathlib import Path
from typing import Any

from psf.errors import UserError
from psf.output.annotations.brush_rle import decode_brush, encode_brush
from psf.output.annotations.coco import CocoInstanceWriter, CocoPanopticWriter
from psf.output.annotations.cvat import CvatWriter
from psf.output.annotations.label_studio import LOCAL_FILES, LabelStudioWriter
from psf.output.annotations.labelme import LabelmeWriter, labelme_document, labelme_shapes
from psf.output.annotations.writer import (
    SHAPES,
    AnnotatedImage,
    AnnotationWriter,
    ShapeWriter,
    StreamedFile,
    list_segments,
)
from psf.output.annotations.yolo import YoloWriter

__all__ = [
    "ANNOTATION_KINDS",
    "LOCAL_FILES",
    "SHAPES",
    "AnnotatedImage",
    "AnnotationWriter",
    "StreamedFile",
    "annotation_writer",
    "decode_brush",
    "encode_brush",
    "labelme_document",
    "labelme_shapes",
    "list_segments",
]

ANNOTATION_KINDS = {
    "coco-panoptic": "panoptic.json and panoptic/NAME.png",
    "coco-instance": "instances.json with the things",
    "labelme": "NAME.json",
    "cvat": "annotations.xml (CVAT for images 1.1) and labels.json",
    "label-studio": "tasks.json and config.xml",
    "yolo": "data.yaml and labels/train/NAME.txt, polygons of the things",
}
_WRITERS: dict[str, type[AnnotationWriter]] = {
    one.kind: one
    for one in (CocoPanopticWriter, CocoInstanceWriter, LabelmeWriter, CvatWriter, LabelStudioWriter, YoloWriter)
}


def annotation_writer(
    kind: str, folder: Path, *, shapes: str = "masks", image_prefix: str | None = None, overwrite: bool = False
) -> AnnotationWriter:
    """The writer of a kind, to the folder of this name in a folder of results.

    Args:
        kind: one of ANNOTATION_KINDS.
        folder: of all results.
        shapes: of formats with both masks and polygons, see `ShapeWriter`.
        image_prefix: of label-studio, see `LabelStudioWriter`.
        overwrite: True: files that psf has not written may be replaced, too.

    Raises:
        UserError: if there is no such kind, or if the format has no such shapes.
    """
    if kind not in _WRITERS:
        raise UserError(f"{kind!r} is no format of annotation tools: expected one of {', '.join(_WRITERS)}")
    writer = _WRITERS[kind]
    settings: dict[str, Any] = {"overwrite": overwrite}
    if issubclass(writer, ShapeWriter):
        settings["shapes"] = shapes
    if issubclass(writer, LabelStudioWriter):
        settings["image_prefix"] = image_prefix
    return writer(folder / kind, **settings)
