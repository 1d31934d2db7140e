"""The ground truth of a COCO panoptic dataset, read image by image."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import MetadataCatalog

from psf.data import image_key, read_panoptic_ids, read_panoptic_json
from psf.errors import UserError

__all__ = ["READ_AHEAD", "ImageGroundTruth", "PanopticGroundTruth", "has_panoptic_gt"]

READ_AHEAD = "psf_gt"  # key of an input dict: a function that returns its `ImageGroundTruth`


class ImageGroundTruth(NamedTuple):
    """labels: (H, W) uint32 segment ids, 0 is void; segments: the JSON's dicts with the dataset's own `category_id`.

    Evaluators share both, and must not change them.
    """

    labels: np.ndarray
    segments: list[dict[str, Any]]


def has_panoptic_gt(dataset_name: str) -> bool:
    """Whether the dataset's metadata has a panoptic JSON with annotations and a folder of PNGs, and both exist."""
    metadata = MetadataCatalog.get(dataset_name)
    is_there = os.path.isfile(metadata.get("panoptic_json") or "") and os.path.isdir(
        metadata.get("panoptic_root") or ""
    )
    return is_there and bool(PanopticGroundTruth(dataset_name).annotations)


class PanopticGroundTruth:
    """Panoptic PNGs and segments of a registered dataset, by image id.

    The JSON is read on first access, if no other part of this process has read it (`read_panoptic_json`); a PNG is read
    on every `read`.

    Args:
        dataset_name: its metadata contains `panoptic_json`, `panoptic_root` and the maps of category ids.
    """

    def __init__(self, dataset_name: str) -> None:
        self.metadata = MetadataCatalog.get(dataset_name)
        self.thing_ids: dict[int, int] = self.metadata.get("thing_dataset_id_to_contiguous_id") or {}
        self.stuff_ids: dict[int, int] = self.metadata.get("stuff_dataset_id_to_contiguous_id") or {}

    @property
    def categories(self) -> dict[int, dict[str, Any]]:
        """Category id -> its entry in the JSON (`name`, `isthing`), in the order of the JSON."""
        return {category["id"]: category for category in self._json["categories"]}

    @cached_property
    def annotations(self) -> dict[int | str, dict[str, Any]]:
        """Image id -> its entry in the JSON (`file_name`, `segments_info`), in the order of the JSON."""
        return {image_key(annotation["image_id"]): annotation for annotation in self._json["annotations"]}

    def read(self, image_id: int | str) -> ImageGroundTruth:
        """One image's ground truth.

        Raises:
            UserError: if the image is not in the JSON, the PNG cannot be read, or the PNG has ids that are not in the
                JSON.
        """
        annotation = self.annotations.get(image_key(image_id))
        if annotation is None:
            raise UserError(f"{self.metadata.panoptic_json} has no annotation for image id {image_id!r}")
        path = os.path.join(self.metadata.panoptic_root, annotation["file_name"])
        segments = annotation["segments_info"]
        return ImageGroundTruth(read_panoptic_ids(path, [segment["id"] for segment in segments]), segments)

    def of(self, image: dict[str, Any]) -> ImageGroundTruth:
        """The ground truth of an input dict with "image_id"; `BackgroundEvaluators` reads it ahead, for all evaluators.

        Raises:
            UserError: as `read`.
        """
        read_ahead: Callable[[], ImageGroundTruth] | None = image.get(READ_AHEAD)
        return self.read(image["image_id"]) if read_ahead is None else read_ahead()

    def contiguous_id(self, category_id: int) -> int:
        """The model's class of a category of the JSON."""
        return self.thing_ids[category_id] if category_id in self.thing_ids else self.stuff_ids[category_id]

    def read_contiguous(self, image_id: int | str) -> ImageGroundTruth:
        """One image's ground truth with `isthing` and contiguous classes, for the model and Detectron2's Visualizer."""
        return self.contiguous(self.read(image_id))

    def contiguous(self, gt: ImageGroundTruth) -> ImageGroundTruth:
        """The same ground truth with `isthing` and contiguous classes."""
        segments = [
            {
                **segment,
                "category_id": self.contiguous_id(segment["category_id"]),
                "isthing": segment["category_id"] in self.thing_ids,
            }
            for segment in gt.segments
        ]
        return ImageGroundTruth(gt.labels, segments)

    @cached_property
    def _json(self) -> dict[str, Any]:
        return read_panoptic_json(self.metadata.panoptic_json, ("categories", "annotations"))
