"""Write panoptic predictions in COCO's format, for a submission or another program."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from panopticapi.utils import id2rgb
from PIL import Image

from psf.data import image_key
from psf.data.own_files import free_name, has_png_sign, save_signed_png, write_own_text
from psf.evaluation.ground_truth import PanopticGroundTruth, has_panoptic_gt
from psf.structures import CategoryIds

__all__ = ["PanopticWriter"]


class PanopticWriter(DatasetEvaluator):
    """Writes panoptic_predictions.json and panoptic_predictions/*.png; needs no ground truth and measures nothing.

    A PNG encodes segment ids as R + 256 G + 65536 B, 0 is void. It has the name of the ground truth's PNG, including
    sub-folders. Without ground truth, its name is the image id ("000000000139.png", as in COCO). So
    no two images share a PNG, also across processes. Several machines need a shared folder. Existing files that psf has
    not written stay (`free_name`).

    Args:
        dataset_name: a registered dataset with the maps of category ids in its metadata.
        output_dir: a folder, created if missing.
        distributed: gather the JSON's entries from all processes, else write those of this process.
    """

    def __init__(self, dataset_name: str, output_dir: str | Path, *, distributed: bool = True) -> None:
        self._dataset_name = dataset_name
        self._category_ids = CategoryIds.from_metadata(MetadataCatalog.get(dataset_name))
        self._folder = Path(output_dir, "panoptic_predictions")
        self._distributed = distributed
        self.reset()

    def reset(self) -> None:
        self._annotations: list[dict[str, Any]] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Write a batch's PNGs: inputs have "image_id", outputs "panoptic_seg"."""
        for image, output in zip(inputs, outputs):
            ids, segments_info = output["panoptic_seg"]
            key = image_key(image["image_id"])
            file_name = self._gt_names.get(key) or _name_of_id(key)
            target = free_name(self._folder / file_name, has_png_sign)  # leaves no other file in a submission's folder
            save_signed_png(Image.fromarray(id2rgb(np.asarray(ids.cpu()))), target)
            file_name = target.relative_to(self._folder).as_posix()
            segments = self._category_ids.coco_segments(segments_info)
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
        write_own_text(free_name(self._folder.with_suffix(".json")), content)

    @cached_property
    def _gt_names(self) -> dict[int | str, str]:
        """Image id -> name of the ground truth's PNG, below its folder; {} without ground truth."""
        if not has_panoptic_gt(self._dataset_name):
            return {}
        annotations = PanopticGroundTruth(self._dataset_name).annotations
        return {key: Path(annotation["file_name"]).as_posix() for key, annotation in annotations.items()}


def _name_of_id(image_id: int | str) -> str:
    return f"{image_id:012d}.png" if isinstance(image_id, int) else f"{quote(image_id, safe='')}.png"
