"""An instance result: masks that may overlap, with boxes and scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances
from detectron2.utils.video_visualizer import VideoVisualizer
from pycocotools import mask as coco_masks

from psf.output.colors import class_color
from psf.output.drawing import Region, find_box
from psf.output.task_output import TaskOutput
from psf.structures import CategoryIds

__all__ = ["InstanceOutput"]


class InstanceOutput(TaskOutput):
    """The task "instance": `instances` of a prediction."""

    task, result, records_key = "instance", "instances", "instances"

    def __init__(self, prediction: dict[str, Any], metadata: Any) -> None:
        super().__init__(prediction, metadata)
        self._instances: Instances = prediction["instances"].to("cpu")

    @property
    def size(self) -> tuple[int, int]:
        height, width = self._instances.image_size
        return height, width

    def records(self) -> list[dict[str, Any]]:
        """The JSON record of each instance.

        Returns:
            One dict per instance, best first: `id` from 1, `class`, `category_id` (the dataset's own),
            `contiguous_id` (the model's), `score`, `area` of the mask in pixels, `bbox` [x, y, width, height] in pixels
            and `segmentation`, the mask in COCO's run-length encoding.

        Raises:
            UserError: if an instance has a class that the metadata do not list.
        """
        instances = self._instances
        category_ids = CategoryIds.from_metadata(self.metadata)
        records = []
        classes, scores = instances.pred_classes.tolist(), instances.scores.tolist()
        boxes = instances.pred_boxes.tensor.tolist()
        for i, (box, category, score) in enumerate(zip(boxes, classes, scores, strict=True)):
            category_id = category_ids.category_id(category, True)
            mask = instances.pred_masks[i].numpy()
            run_lengths = coco_masks.encode(np.asfortranarray(mask.view(np.uint8)))
            records.append(
                {
                    "id": i + 1,
                    "class": self.metadata.thing_classes[category],
                    "category_id": category_id,
                    "contiguous_id": category,
                    "score": score,
                    "area": int(mask.sum()),
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                    "segmentation": {"size": run_lengths["size"], "counts": run_lengths["counts"].decode()},
                }
            )
        return records

    def label_image(self) -> None:
        return None

    def mask(self, record: dict[str, Any]) -> np.ndarray:
        return self._instances.pred_masks[record["id"] - 1].numpy()

    def regions(self) -> list[Region]:
        instances, regions = self._instances, []
        classes, scores = instances.pred_classes.tolist(), instances.scores.tolist()
        for mask, category, score in zip(instances.pred_masks.numpy(), classes, scores, strict=True):
            box = find_box(mask)
            if box is not None:
                name, color = self.metadata.thing_classes[category], class_color(self.metadata, category, True)
                regions.append(Region(name, color, True, score, box, mask[box]))
        return regions

    def draw_frame(self, visualizer: VideoVisualizer, image_rgb: np.ndarray) -> np.ndarray:
        return visualizer.draw_instance_predictions(image_rgb, self._instances).get_image()

    def padded(self, columns: int) -> InstanceOutput:
        height, width = self.size
        fields = {**self._instances.get_fields()}
        fields["pred_masks"] = torch.nn.functional.pad(fields["pred_masks"], (0, columns))
        return InstanceOutput({"instances": Instances((height, width + columns), **fields)}, self.metadata)
