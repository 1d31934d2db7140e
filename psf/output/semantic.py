"""A semantic result: one class for each pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.utils.video_visualizer import VideoVisualizer

from psf.errors import UserError
from psf.output.colors import class_color
from psf.output.drawing import Region, find_box
from psf.output.task_output import TaskOutput
from psf.structures import CategoryIds, PanopticClasses

__all__ = ["SemanticOutput"]

MAX_ID = 2**16 - 1  # of a PNG of one channel


class SemanticOutput(TaskOutput):
    """The task "semantic": one class per pixel. PNGs have the dataset's category ids.

    `sem_seg` of the prediction is (K, H, W) scores, where the highest wins, or an (H, W) map of classes.

    Raises:
        UserError: if the metadata list no classes.
    """

    task, result, records_key = "semantic", "sem_seg", "classes"

    def __init__(self, prediction: dict[str, Any], metadata: Any) -> None:
        super().__init__(prediction, metadata)
        result: torch.Tensor = prediction["sem_seg"]
        self._channels = (result if result.dim() == 2 else result.argmax(dim=0)).cpu().numpy()
        self._classes = _classes_by_channel(metadata)

    @property
    def size(self) -> tuple[int, int]:
        height, width = self._channels.shape
        return height, width

    def records(self) -> list[dict[str, Any]]:
        """The JSON record of each class in the image.

        Returns:
            One dict per class, the largest first: `id` (its value in the PNG), `class`, `category_id` (the dataset's
            own, the same number), `contiguous_id` (the model's) and `area` in pixels.
        """
        areas = np.bincount(self._channels.ravel())
        records = []
        for channel in np.argsort(-areas, kind="stable")[: np.count_nonzero(areas)].tolist():
            name, own_id = self._classes[channel]
            record = {"id": own_id, "class": name, "category_id": own_id, "contiguous_id": channel}
            records.append(record | {"area": int(areas[channel])})
        return records

    def label_image(self) -> np.ndarray:
        """(H, W) in 8 bits, or in 16 if the ids need them.

        Raises:
            UserError: if an id of the dataset needs more bits.
        """
        table = np.zeros(max(self._classes) + 1, np.int64)
        for channel, (name, own_id) in self._classes.items():
            if not 0 <= own_id <= MAX_ID:
                raise UserError(
                    f"class {name!r} has id {own_id} in the dataset, but the PNG can store 0 to {MAX_ID}: "
                    "change the ids of the dataset, or do not write the PNG"
                )
            table[channel] = own_id
        return table.astype(np.uint8 if table.max() < 256 else np.uint16)[self._channels]

    def mask(self, record: dict[str, Any]) -> np.ndarray:
        return self._channels == record["contiguous_id"]

    def regions(self) -> list[Region]:
        regions = []
        for record in self.records():
            mask = self.mask(record)
            box = find_box(mask)
            assert box is not None  # a record is of a class that has pixels
            color = class_color(self.metadata, record["contiguous_id"], False)
            regions.append(Region(record["class"], color, False, None, box, mask[box]))
        return regions

    def draw_frame(self, visualizer: VideoVisualizer, image_rgb: np.ndarray) -> np.ndarray:
        return self.picture(image_rgb)

    def padded(self, columns: int) -> SemanticOutput:
        return SemanticOutput(
            {"sem_seg": torch.from_numpy(np.pad(self._channels, ((0, 0), (0, columns))))}, self.metadata
        )


def _classes_by_channel(metadata: Any) -> dict[int, tuple[str, int]]:
    """Channel -> class name and id in the dataset; a channel that all things share is ("things", 0)."""
    classes = PanopticClasses.from_metadata(metadata)
    if classes is None:
        raise UserError(
            f"the metadata of {metadata.get('name', 'the dataset')} list no classes; DATASETS.TEST needs classes"
        )
    thing_channels, stuff_channels, _ = classes.semantic_channels
    category_ids = CategoryIds.from_metadata(metadata)
    table = {channel: ("things", 0) for channel in thing_channels}
    for kind, channels, ids in (
        ("thing", () if classes.is_separated else thing_channels, classes.thing_ids),
        ("stuff", stuff_channels, classes.stuff_ids),
    ):
        names = metadata.get(f"{kind}_classes", [])
        own_ids = category_ids.things if kind == "thing" else category_ids.stuff
        table |= {channel: (names[category], own_ids[category]) for channel, category in zip(channels, ids)}
    return table
