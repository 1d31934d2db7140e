"""Results in the formats of annotation tools, written image by image."""

from pathlib import Path
from typing import Any

from psf.output.annotations.brush_rle import decode_brush, encode_brush
from psf.output.annotations.coco import CocoInstanceWriter, CocoPanopticWriter
from psf.output.annotations.cvat import CvatWriter
from psf.output.annotations.label_studio import LOCAL_FILES, LabelStudioWriter
from psf.output.annotations.labelme import LabelmeWriter, labelme_document, labelme_shapes
from psf.output.annotations.writer import SHAPES, AnnotatedImage, AnnotationWriter, StreamedFile, list_segments
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


def annotation_writer(kind: str, folder: Path, **settings: Any) -> AnnotationWriter:
    """The writer of a kind, to the folder of this name in a folder of results; `settings` are those of the writer."""
    return _WRITERS[kind](folder / kind, **settings)
