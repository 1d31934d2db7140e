"""Training scenes as files and annotations, for mappers that know nothing of generated scenes, such as Detectron2's."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import IO, Any

import cv2
import numpy as np
from detectron2.structures import BoxMode
from iopath.common.file_io import PathHandler
from PIL import Image

from psf.data.shapes.scene import Scene, make_scene
from psf.errors import UserError

__all__ = ["SceneAnnotations", "ScenePathHandler", "mask_polygons"]

_PREFIX = "psf-shapes://"
_FINENESS = 4  # of the outlines, in steps per pixel


@lru_cache(maxsize=4)  # a mapper reads the image of a scene, then its annotations
def _scene(index: int, split: str) -> Scene:
    return make_scene(index, split=split)


class ScenePathHandler(PathHandler):
    """Makes Detectron2's PathManager open the images of scenes, as PNG: psf-shapes://SPLIT/INDEX.png."""

    @staticmethod
    def path(index: int, split: str) -> str:
        """The path of a scene's image."""
        return f"{_PREFIX}{split}/{index:06d}.png"

    def _get_supported_prefixes(self) -> list[str]:
        return [_PREFIX]

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return re.fullmatch(rf"{_PREFIX}\w+/\d+\.png", path) is not None

    _exists = _isfile

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[Any]:
        found = re.fullmatch(rf"{_PREFIX}(\w+)/(\d+)\.png", path)
        if found is None or mode != "rb":
            raise UserError(f"{path}: expected {_PREFIX}SPLIT/INDEX.png, which can only be read, in mode 'rb'")
        file = io.BytesIO()
        Image.fromarray(_scene(int(found[2]), found[1]).image).save(file, format="PNG", compress_level=1)
        file.seek(0)
        return file


class SceneAnnotations(Sequence[dict[str, Any]]):
    """`annotations` of Detectron2's dicts for the things of a training scene, which is drawn when they are read.

    They have absolute boxes, polygons (`mask_polygons`), category_id (contiguous) and iscrowd. A deep copy, as mappers
    make it of a dict, is a list.
    """

    def __init__(self, index: int, split: str) -> None:
        self.scene_index, self.split = index, split

    def __len__(self) -> int:
        return len(self._things())

    def __getitem__(self, position: Any) -> Any:
        return self._annotations()[position]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._annotations())

    def __deepcopy__(self, memo: dict[int, Any]) -> list[dict[str, Any]]:
        return self._annotations()

    def _things(self) -> list[dict[str, Any]]:
        return [segment for segment in _scene(self.scene_index, self.split).segments if segment["isthing"]]

    def _annotations(self) -> list[dict[str, Any]]:
        annotations, labels = [], _scene(self.scene_index, self.split).labels
        for thing in self._things():
            mask = labels == thing["id"]
            ys, xs = np.nonzero(mask)
            annotations.append(
                {
                    "bbox": [float(value) for value in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)],
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": thing["category_id"],
                    "iscrowd": int(thing["iscrowd"]),
                    "segmentation": mask_polygons(mask),
                }
            )
        return annotations


def mask_polygons(mask: np.ndarray) -> list[list[float]]:
    """Outlines of an (H, W) bool mask as COCO polygons [x0, y0, x1, y1, ...] in pixels.

    They are accurate to an eighth of a pixel; drawn by pycocotools they give the mask again. They have no holes: a part
    with a hole is cut in two along a column through the hole.
    """
    fine = mask.astype(np.uint8).repeat(_FINENESS, axis=0).repeat(_FINENESS, axis=1)
    outlines, hierarchy = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    parents = [] if hierarchy is None else hierarchy[0, :, 3]  # -1: not a hole
    for outline, parent in zip(outlines, parents, strict=True):
        if parent >= 0:
            cut = round(float(outline[..., 0].mean()) / _FINENESS)
            left = np.arange(mask.shape[1]) < cut
            return mask_polygons(mask & left) + mask_polygons(mask & ~left)
    return [((outline.reshape(-1) + 0.5) / _FINENESS).tolist() for outline in outlines]
