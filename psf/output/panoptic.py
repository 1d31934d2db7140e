"""A panoptic result: a map of segment ids."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.utils.video_visualizer import VideoVisualizer
from panopticapi.utils import id2rgb
from scipy import ndimage

from psf.output.colors import class_color
from psf.output.drawing import Region
from psf.output.task_output import TaskOutput
from psf.structures import CategoryIds

__all__ = ["PanopticOutput", "panoptic_regions"]


class PanopticOutput(TaskOutput):
    """The task "panoptic": `panoptic_seg` of a prediction. The PNG has COCO's ids, R + 256 G + 65536 B; 0: void."""

    task, result, records_key = "panoptic", "panoptic_seg", "segments_info"

    def __init__(self, prediction: dict[str, Any], metadata: Any) -> None:
        super().__init__(prediction, metadata)
        panoptic_ids, self._segments = prediction["panoptic_seg"]
        self._ids: torch.Tensor = panoptic_ids.cpu()

    @property
    def size(self) -> tuple[int, int]:
        height, width = self._ids.shape
        return height, width

    def records(self) -> list[dict[str, Any]]:
        """The JSON record of each segment; area and box are measured on the id map.

        Returns:
            One dict per segment: `id` (its value in the panoptic PNG), `class`, `category_id` (the dataset's own, as
            in a COCO panoptic JSON), `contiguous_id` (the model's), `isthing`, `score`, `area` in pixels and
            `bbox` [x, y, width, height] in pixels.

        Raises:
            UserError: if a segment has a class that the metadata do not list.
        """
        id_map = self._ids.numpy()
        areas = np.bincount(id_map.ravel())
        extents = ndimage.find_objects(id_map)  # per id, from 1 on: (rows, columns) that enclose it
        category_ids = CategoryIds.from_metadata(self.metadata)
        records = []
        for segment in self._segments:
            rows, columns = extents[segment["id"] - 1]
            category, is_thing = segment["category_id"], segment["isthing"]
            category_id = category_ids.category_id(category, is_thing)
            names = self.metadata.thing_classes if is_thing else self.metadata.stuff_classes
            records.append(
                {
                    "id": segment["id"],
                    "class": names[category],
                    "category_id": category_id,
                    "contiguous_id": category,
                    "isthing": is_thing,
                    "score": segment["score"],
                    "area": int(areas[segment["id"]]),
                    "bbox": [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start],
                }
            )
        return records

    def label_image(self) -> np.ndarray:
        return id2rgb(self._ids.numpy())

    def mask(self, record: dict[str, Any]) -> np.ndarray:
        return self._ids.numpy() == record["id"]

    def regions(self) -> list[Region]:
        return panoptic_regions(self._ids.numpy(), self._segments, self.metadata)

    def draw_frame(self, visualizer: VideoVisualizer, image_rgb: np.ndarray) -> np.ndarray:
        segments = copy.deepcopy(self._segments)  # Detectron2's visualizer overwrites `area` in them
        return visualizer.draw_panoptic_seg_predictions(image_rgb, self._ids, segments).get_image()

    def padded(self, columns: int) -> PanopticOutput:
        ids = torch.nn.functional.pad(self._ids, (0, columns))
        return PanopticOutput({"panoptic_seg": (ids, self._segments)}, self.metadata)


def panoptic_regions(ids: np.ndarray, segments: Sequence[Mapping[str, Any]], metadata: Any) -> list[Region]:
    """The segments of a panoptic map, for drawing; names of crowds end with "(crowd)".

    Args:
        ids: (H, W) integers, 0 is void.
        segments: dicts with `id`, the contiguous `category_id`, `isthing`, and `score` and `iscrowd` if known; segments
            without a pixel are skipped.
        metadata: Detectron2's, with class names and maybe colours.
    """
    values, labels = np.unique(ids, return_inverse=True)  # ids may be too large to count up to
    position_of = {value: position for position, value in enumerate(values.tolist())}
    labels = labels.reshape(ids.shape)
    extents = ndimage.find_objects(labels + 1)
    regions = []
    for segment in segments:
        position = position_of.get(segment["id"])
        if position is None:
            continue
        category, is_thing = segment["category_id"], bool(segment["isthing"])
        name = (metadata.thing_classes if is_thing else metadata.stuff_classes)[category]
        regions.append(
            Region(
                name=f"{name} (crowd)" if segment.get("iscrowd") else name,
                color=class_color(metadata, category, is_thing),
                is_thing=is_thing,
                score=segment.get("score"),
                box=extents[position],
                mask=labels[extents[position]] == position,
            )
        )
    return regions
