"""COCO's formats: panoptic, and instances (cocodataset.org, "Data format"), with a `score` in each record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_masks

from psf.data.files import make_folder
from psf.data.own_files import own_path
from psf.output.annotations.outlines import trace_outlines
from psf.output.annotations.writer import (
    AnnotatedClass,
    AnnotatedImage,
    AnnotationWriter,
    Segment,
    ShapeWriter,
    StreamedFile,
    list_segments,
    to_json,
)
from psf.output.task_output import TaskOutput

__all__ = ["CocoInstanceWriter", "CocoPanopticWriter"]


class _CocoWriter(AnnotationWriter):
    """One JSON; the records of each image are written at once, those in `images` at the end (100 bytes an image)."""

    json_name: str

    def __init__(self, folder: Path, *, overwrite: bool = False) -> None:
        super().__init__(folder, overwrite=overwrite)
        self._images: list[str] = []
        self._number = 0  # of annotations so far
        self._file: StreamedFile

    def _open(self, categories: Sequence[dict[str, Any]]) -> StreamedFile:
        def tail(number: int) -> str:
            images = ",\n".join(self._images[:number])  # Ctrl-C may have come between an image and its records
            return f'\n],\n"images":[\n{images}\n],\n"categories":{to_json(list(categories))}}}\n'

        self._images, self._number = [], 0
        self._file = StreamedFile(
            self.folder / self.json_name,
            head='{"annotations":[\n',
            separator="",
            tail=tail,
            overwrite=self.overwrite,
        )
        return self._file

    def _append(self, image: AnnotatedImage, size: tuple[int, int], annotations: Sequence[dict[str, Any]]) -> None:
        entry = {"id": image.image_id, "file_name": image.file_name, "height": size[0], "width": size[1]}
        separator = ",\n" if self._number and annotations else ""
        self._images.append(to_json(entry))
        self._file.append(separator + ",\n".join(map(to_json, annotations)))
        self._number += len(annotations)


class CocoPanopticWriter(_CocoWriter):
    """panoptic.json and a folder panoptic with NAME.png for each image; the pixels are R + 256 G + 65536 B.

    The first image of a run removes the panoptic.json of an earlier run, which does not fit the new PNGs: nobody can
    mistake it for theirs, even if this run is killed.
    """

    kind = "coco-panoptic"
    tasks = ("panoptic",)
    json_name = "panoptic.json"

    def files(self, images: Sequence[AnnotatedImage]) -> Iterator[Path]:
        yield self.folder / self.json_name
        for image in images:
            yield self._png(image)

    def image_folders(self) -> list[Path]:
        return [self.folder / "panoptic"]

    def open_files(self, classes: list[AnnotatedClass]) -> AbstractContextManager[Any]:
        make_folder(self.folder / "panoptic", "the folder of the PNGs,")
        return self._open([_category(one) | {"isthing": int(one.is_thing), "color": [*one.color]} for one in classes])

    def add(self, image: AnnotatedImage, output: TaskOutput) -> None:
        infos = [
            {key: record[key] for key in ("id", "category_id", "area", "bbox")}
            | {"iscrowd": 0, "score": record.get("score", 1.0)}
            for record in output.records()
        ]
        labels = output.label_image()
        assert labels is not None
        target = self._png(image)
        if not self._number:
            (self.folder / self.json_name).unlink(missing_ok=True)
        with own_path(target, overwrite=self.overwrite) as path:
            Image.fromarray(labels).save(path)
        annotation = {"image_id": image.image_id, "file_name": target.name, "segments_info": infos}
        self._append(image, output.size, [annotation])

    def _png(self, image: AnnotatedImage) -> Path:
        return self.folder / "panoptic" / f"{image.name}.png"


class CocoInstanceWriter(ShapeWriter, _CocoWriter):
    """instances.json with the things of each image, as RLE or, with `shapes` "polygons", as polygons."""

    kind = "coco-instance"
    json_name = "instances.json"

    def files(self, images: Sequence[AnnotatedImage]) -> Iterator[Path]:
        yield self.folder / self.json_name

    def open_files(self, classes: list[AnnotatedClass]) -> AbstractContextManager[Any]:
        return self._open([_category(one) for one in classes if one.is_thing])

    def add(self, image: AnnotatedImage, output: TaskOutput) -> None:
        annotations: list[dict[str, Any]] = []
        for segment in list_segments(output):
            if segment.is_thing and (shape := self._shape(segment)):
                annotations.append({"id": self._number + len(annotations) + 1, "image_id": image.image_id} | shape)
        self._append(image, output.size, annotations)

    def _shape(self, segment: Segment) -> dict[str, Any] | None:
        """An annotation without ids of its own and of the image; None for an empty mask."""
        rle = coco_masks.encode(np.asfortranarray(segment.mask.view(np.uint8)))
        segmentation: Any = {"size": rle["size"], "counts": rle["counts"].decode()}
        if self.shapes == "polygons":
            segmentation = [[value for point in one for value in point] for one in trace_outlines(segment.mask)]
        area = int(coco_masks.area(rle))
        if not area:
            return None
        return {
            "category_id": segment.category_id,
            "segmentation": segmentation,
            "area": area,
            "bbox": coco_masks.toBbox(rle).tolist(),
            "iscrowd": 0,
            "score": segment.score,
        }


def _category(one: AnnotatedClass) -> dict[str, Any]:
    return {"id": one.category_id, "name": one.label, "supercategory": ""}
