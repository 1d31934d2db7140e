"""Panoptic predictions as files in COCO's format, for a submission or another program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from panopticapi.utils import id2rgb
from PIL import Image

from psf.evaluation.category_ids import CategoryIds

__all__ = ["PanopticWriter"]


class PanopticWriter(DatasetEvaluator):
    """Writes panoptic_predictions.json and panoptic_predictions/*.png, and measures nothing: no truth is needed.

    A PNG has the base name of its image and holds segment ids as R + 256 G + 65536 B, 0 is void. Each process writes
    its own PNGs, so several machines need a folder that they share.

    Args:
        dataset_name: a registered data set, whose metadata map its category ids.
        output_dir: a folder, made if it is not there.
        distributed: gather the JSON's entries from all processes; else write those of this one.
    """

    def __init__(self, dataset_name: str, output_dir: str | Path, *, distributed: bool = True) -> None:
        self._category_ids = CategoryIds(dataset_name)
        self._folder = Path(output_dir, "panoptic_predictions")
        self._distributed = distributed
        self.reset()

    def reset(self) -> None:
        self._annotations: list[dict[str, Any]] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Write a batch's PNGs: inputs have "image_id" and "file_name", outputs "panoptic_seg"."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for image, output in zip(inputs, outputs):
            ids, segments_info = output["panoptic_seg"]
            file_name = Path(image["file_name"]).stem + ".png"
            Image.fromarray(id2rgb(np.asarray(ids.cpu()))).save(self._folder / file_name)
            segments = self._category_ids.convert(segments_info)
            self._annotations.append({"image_id": image["image_id"], "file_name": file_name, "segments_info": segments})

    def evaluate(self) -> None:
        """Write the JSON, in the main process."""
        annotations = self._annotations
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather(annotations)
            if not comm.is_main_process():
                return
            annotations = [one for part in gathered for one in part]
        self._folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"annotations": annotations})
        self._folder.with_suffix(".json").write_text(content, encoding="utf-8")
