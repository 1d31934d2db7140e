"""labelme: a JSON for each image, as labelme's own files (`labelme/_label_file.py`, `labelme/_shape.py`, version 6)."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from psf.data.files import read_json
from psf.data.own_files import is_own, write_own_text
from psf.errors import UserError
from psf.output.annotations.outlines import trace_outlines
from psf.output.annotations.writer import (
    WAY_OUT,
    AnnotatedClass,
    AnnotatedImage,
    Segment,
    ShapeWriter,
    list_segments,
    to_json,
)
from psf.output.drawing import find_box
from psf.output.task_output import TaskOutput

__all__ = ["LabelmeWriter", "labelme_document", "labelme_shapes"]


def labelme_document(
    segments: Iterable[Segment], size: tuple[int, int], image_path: str, *, exact: bool
) -> dict[str, Any]:
    """The content of a labelme file.

    Args:
        segments: of the image.
        size: height and width.
        image_path: of the image, relative to the folder of the JSON.
        exact: as for `labelme_shapes`.
    """
    shapes: list[dict[str, Any]] = []
    for one in segments:
        shapes += labelme_shapes(one.mask, one.label, one.id, exact=exact, description=f"score {one.score:.3f}")
    return {
        "version": "5.3.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": size[0],
        "imageWidth": size[1],
    }


def labelme_shapes(
    mask: np.ndarray, label: str, group_id: int, *, exact: bool, description: str = ""
) -> list[dict[str, Any]]:
    """The shapes of one segment.

    Args:
        mask: (H, W) bool.
        label: name of the class.
        group_id: joins the shapes of the segment.
        exact: False: a polygon for each connected part, see `trace_outlines`. True: one shape "mask" (labelme 5.3).
        description: a text that labelme shows.

    Returns:
        [] for an empty mask.
    """
    box = find_box(mask)
    if box is None:
        return []
    common = {"label": label, "group_id": group_id, "description": description, "flags": {}}
    if exact:
        file = io.BytesIO()
        Image.fromarray(mask[box].astype(np.uint8) * 255).save(file, format="PNG")
        points = [[box[1].start, box[0].start], [box[1].stop - 1, box[0].stop - 1]]
        return [{**common, "points": points, "shape_type": "mask", "mask": base64.b64encode(file.getvalue()).decode()}]
    return [{**common, "points": one, "shape_type": "polygon", "mask": None} for one in trace_outlines(mask)]


class LabelmeWriter(ShapeWriter):
    """NAME.json for each image; `imagePath` leads from its folder to the image, so that labelme opens both."""

    kind = "labelme"

    def files(self, images: Sequence[AnnotatedImage]) -> Iterator[Path]:
        for image in images:
            yield self._target(image)

    def check(self, images: Sequence[AnnotatedImage]) -> None:
        super().check(images)
        if self.overwrite:
            return
        for image in images:
            target = self._target(image)
            content = read_json(target) if os.path.lexists(target) and is_own(target) else None
            earlier = content.get("imagePath") if isinstance(content, dict) else None
            if isinstance(earlier, str) and earlier != self._image_path(image):
                raise UserError(
                    f"{target} has the results of {earlier}, which those of {image.path} would replace; {WAY_OUT}"
                )

    def open_files(self, classes: list[AnnotatedClass]) -> AbstractContextManager[Any]:
        return nullcontext()

    def add(self, image: AnnotatedImage, output: TaskOutput) -> None:
        exact = self.shapes == "masks"
        document = labelme_document(list_segments(output), output.size, self._image_path(image), exact=exact)
        write_own_text(self._target(image), to_json(document), overwrite=self.overwrite)

    def _target(self, image: AnnotatedImage) -> Path:
        return self.folder / f"{image.name}.json"

    def _image_path(self, image: AnnotatedImage) -> str:
        """From the real folder of the JSON, because `..` leads out of that, not out of a link to it."""
        folder = os.path.realpath(image.path.parent)
        return os.path.relpath(os.path.join(folder, image.path.name), os.path.realpath(self.folder))
