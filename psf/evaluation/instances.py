"""AP of masks and boxes by Detectron2's COCOEvaluator, for datasets whose things have joint class ids."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from psf.data import distinct_names, image_key
from psf.data.own_files import write_own_text
from psf.data.panoptic_format import shorten
from psf.errors import UserError
from psf.evaluation.ground_truth import PanopticGroundTruth

__all__ = ["InstanceEvaluator", "write_instance_json"]

logger = logging.getLogger(__name__)


class InstanceEvaluator(COCOEvaluator):
    """COCO's AP of boxes under "bbox", and of masks under "segm" if the ground truth has masks.

    COCOEvaluator expects things to have the ids 0..n-1; in a panoptic dataset they share 0..K-1 with stuff. Without
    predictions COCOEvaluator returns NaN for every metric; here AP is then 0, as if all predictions were wrong. AP is
    NaN only for a size, a class or a dataset without ground truth.

    Args:
        dataset_name: a registered dataset.
        json_file: its instances in COCO's format; `write_instance_json` derives it from the panoptic ground truth.
        distributed: gather from all processes, and return results in the main process.
    """

    def __init__(self, dataset_name: str, json_file: str, *, distributed: bool = True) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        # COCOeval sorts categories by their id in the JSON, and Detectron2 lists class names in that order.
        thing_ids = sorted(metadata.thing_dataset_id_to_contiguous_id.items())
        self._things_only = {contiguous: position for position, (_, contiguous) in enumerate(thing_ids)}
        names = distinct_names(metadata.thing_classes)
        name = f"psf/instances/{dataset_name}/{json_file}"  # separate metadata: the dataset's stays unchanged
        MetadataCatalog.get(name).set(
            json_file=json_file,
            thing_classes=[names[contiguous] for _, contiguous in thing_ids],
            thing_dataset_id_to_contiguous_id={old: position for position, (old, _) in enumerate(thing_ids)},
        )
        super().__init__(name, tasks=("bbox", "segm"), distributed=distributed)
        if not any("segmentation" in annotation for annotation in self._coco_api.anns.values()):
            self._tasks = ("bbox",)
        self._json_file = json_file
        self._numbers = _number_images(self._coco_api)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Keep a batch's instances: inputs have "image_id", outputs "instances" with joint contiguous classes.

        Raises:
            UserError: if the image is not in the ground truth, or the class of an instance is not a thing class of the
                dataset.
        """
        super().process(
            [{"image_id": self._number_of(one["image_id"])} for one in inputs],
            [{"instances": self._among_things(output["instances"])} for output in outputs],
        )

    def _derive_coco_results(
        self, coco_eval: COCOeval | None, iou_type: str, class_names: list[str] | None = None
    ) -> dict[str, float]:
        """Detectron2's metrics of one task; its argument is None if no image has a prediction."""
        if coco_eval is None:
            logger.warning("%s: no instance was predicted, so %s AP is 0", self._json_file, iou_type)
            coco_eval = _evaluate_no_predictions(self._coco_api, iou_type)
        metrics: dict[str, float] = super()._derive_coco_results(coco_eval, iou_type, class_names)
        return metrics

    def _number_of(self, image_id: int | str) -> int:
        number = self._numbers.get(image_key(image_id))
        if number is None:
            raise UserError(f"{self._json_file} does not contain image id {shorten(image_id)}, which is evaluated")
        return number

    def _among_things(self, instances: Instances) -> Instances:
        classes = instances.pred_classes.tolist()
        unknown = set(classes) - self._things_only.keys()
        if unknown:
            raise UserError(
                f"instances have classes {sorted(unknown)}, but the thing classes are {sorted(self._things_only)}"
            )
        positions = torch.tensor([self._things_only[one] for one in classes], dtype=torch.int64)
        fields = {**instances.get_fields(), "pred_classes": positions}
        return Instances(instances.image_size, **fields)


def _evaluate_no_predictions(gt: COCO, iou_type: str) -> COCOeval:
    """COCO's evaluation of an empty list of predictions, which COCO.loadRes does not accept."""
    predictions = COCO()
    predictions.dataset = {key: gt.dataset[key] for key in ("images", "categories")} | {"annotations": []}
    with contextlib.redirect_stdout(io.StringIO()):  # both classes print to stdout
        predictions.createIndex()
        evaluation = COCOeval(gt, predictions, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _number_images(gt: COCO) -> dict[int | str, int]:
    """Renumber a ground truth's images as 1, 2, ... in the order of their ids; returns old id -> new id.

    COCOeval puts all ids into a NumPy array, which fails for a mix of numbers and strings and turns numbers beyond 2^63
    into floats.
    """
    keys = {image_key(image["id"]) for image in gt.dataset["images"]}
    ordered = sorted(keys, key=lambda key: (isinstance(key, str), key))
    numbers = {key: number for number, key in enumerate(ordered, 1)}
    for name, key in (("images", "id"), ("annotations", "image_id")):
        for entry in gt.dataset.get(name, ()):
            entry[key] = numbers.get(image_key(entry[key]))
    with contextlib.redirect_stdout(io.StringIO()):  # it prints to stdout
        gt.createIndex()
    return numbers


def write_instance_json(dataset_name: str, path: Path) -> None:
    """Write the things of a panoptic dataset as a COCO instance JSON (masks as RLE), in the main process.

    A file derived from the same panoptic JSON and PNGs is kept. All processes must call this together.
    """
    if comm.is_main_process():
        gt = PanopticGroundTruth(dataset_name)
        source = _describe_source(gt)
        if _read_source(path) != source:
            logger.info("Deriving instance masks of %s from its panoptic PNGs: %s", dataset_name, path)
            content = {"info": source, **_instance_content(gt)}
            write_own_text(path, json.dumps(content))
    comm.synchronize()


def _describe_source(gt: PanopticGroundTruth) -> dict[str, str]:
    """A fingerprint of a panoptic ground truth: a digest of the size and times of each file.

    It takes a tenth of a second for COCO's 5000 PNGs; reading them takes most of a minute. Writing a file always
    changes its ctime, even if the old mtime is restored.
    """
    json_file, png_root = os.path.abspath(gt.metadata.panoptic_json), os.path.abspath(gt.metadata.panoptic_root)
    digest = hashlib.sha256()
    for file in (json_file, *(os.path.join(png_root, one["file_name"]) for one in gt.annotations.values())):
        status = os.stat(file) if os.path.exists(file) else None  # the reader raises if it is missing
        times = status and (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        digest.update(f"{file} {times}\n".encode())
    return {"panoptic_json": json_file, "panoptic_root": png_root, "files": digest.hexdigest()}


def _read_source(path: Path) -> dict[str, str] | None:
    """The fingerprint in an instance JSON; None if the file is missing or was not written by psf."""
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("info")
    except (OSError, ValueError):
        return None


def _instance_content(gt: PanopticGroundTruth) -> dict[str, list[dict[str, Any]]]:
    """The content of a COCO instance JSON: images, categories and annotations."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in gt.annotations:
        labels, segments = gt.read(image_id)
        images.append({"id": image_id, "height": labels.shape[0], "width": labels.shape[1]})
        for segment in segments:
            if segment["category_id"] not in gt.thing_ids:
                continue
            mask = mask_util.encode(np.asfortranarray(labels == segment["id"], dtype=np.uint8))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": segment["category_id"],
                    "iscrowd": int(segment.get("iscrowd", 0)),
                    "area": int(mask_util.area(mask)),
                    "bbox": mask_util.toBbox(mask).tolist(),
                    "segmentation": {"size": mask["size"], "counts": mask["counts"].decode("ascii")},
                }
            )
    categories = [
        {"id": key, "name": category["name"]} for key, category in gt.categories.items() if key in gt.thing_ids
    ]
    return {"images": images, "categories": categories, "annotations": annotations}
