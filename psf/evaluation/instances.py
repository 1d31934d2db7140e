"""AP of masks and boxes by Detectron2's COCOEvaluator, for datasets whose things have joint class ids."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils import comm
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from psf.data import distinct_names, image_key
from psf.data.own_files import write_own_text
from psf.data.panoptic_format import shorten
from psf.errors import UserError
from psf.evaluation.ground_truth import ImageGroundTruth, PanopticGroundTruth

__all__ = ["InstanceEvaluator", "encode_mask", "write_instance_json"]

logger = logging.getLogger(__name__)

_OPENING = '{"info": '  # of a JSON that psf has derived


class InstanceEvaluator(COCOEvaluator):
    """COCO's AP of boxes under "bbox", and of masks under "segm" if the ground truth has masks.

    COCOEvaluator expects things to have the ids 0..n-1; in a panoptic dataset they share 0..K-1 with stuff. Without
    predictions COCOEvaluator returns NaN for every metric; here AP is then 0, as if all predictions were wrong. AP is
    NaN only for a size, a class or a dataset without ground truth.

    Args:
        dataset_name: a registered dataset.
        json_file: its instances in COCO's format; `write_instance_json` derives it from the panoptic ground truth.
        distributed: gather from all processes, and return results in the main process.
        derive: write `json_file` from the panoptic ground truth, unless it is up to date. The masks are encoded in
            `process`, where other evaluators use the ground truth, too; the file is written in `evaluate`. All
            processes must build the evaluator together.
    """

    def __init__(self, dataset_name: str, json_file: str, *, distributed: bool = True, derive: bool = False) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        # COCOeval sorts categories by their id in the JSON, and Detectron2 lists class names in that order.
        thing_ids = sorted(metadata.thing_dataset_id_to_contiguous_id.items())
        self._things_only = {contiguous: position for position, (_, contiguous) in enumerate(thing_ids)}
        names = distinct_names(metadata.thing_classes)
        self._own_name = f"psf/instances/{dataset_name}/{json_file}"  # separate metadata: the dataset's stays unchanged
        MetadataCatalog.get(self._own_name).set(
            json_file=json_file,
            thing_classes=[names[contiguous] for _, contiguous in thing_ids],
            thing_dataset_id_to_contiguous_id={old: position for position, (old, _) in enumerate(thing_ids)},
        )
        self._json_file, self._distributed = json_file, distributed
        self._derived: _DerivedJson | None = None
        if derive:
            self._derived = _DerivedJson(dataset_name, Path(json_file), distributed=distributed)
            self._numbers = _number_ids(self._derived.gt.annotations)
        else:
            self._load()

    def _load(self) -> None:
        """Read the JSON."""
        super().__init__(self._own_name, tasks=("bbox", "segm"), distributed=self._distributed)
        if not any("segmentation" in annotation for annotation in self._coco_api.anns.values()):
            self._tasks = ("bbox",)
        self._numbers = _renumber_images(self._coco_api)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Keep a batch's instances: inputs have "image_id", outputs "instances" with joint contiguous classes.

        Raises:
            UserError: if the image is not in the ground truth, or the class of an instance is not a thing class of the
                dataset.
        """
        for image, output in zip(inputs, outputs):
            number = self._number_of(image["image_id"])
            instances = self._among_things(output["instances"].to("cpu"))
            self._predictions.append({"image_id": number, "instances": _as_coco(instances, number)})
            if self._derived is not None:
                self._derived.add(image)

    def evaluate(self, img_ids: list[int] | None = None) -> dict[str, Any]:
        """Detectron2's results; {} outside the main process."""
        if self._derived is not None:
            self._derived.write()
            if comm.is_main_process() or not self._distributed:
                self._load()
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):  # pycocotools prints its progress and tables
            results: dict[str, Any] = super().evaluate(img_ids)
        logger.debug("pycocotools:\n%s", printed.getvalue())
        return results

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


def _as_coco(instances: Instances, number: int) -> list[dict[str, Any]]:
    """Detectron2's conversion to COCO's results, which takes twice the time for masks."""
    fields = instances.get_fields()
    masks = fields.pop("pred_masks", None)
    results: list[dict[str, Any]] = instances_to_coco_json(Instances(instances.image_size, **fields), number)
    for result, mask in zip(results, () if masks is None else masks):
        result["segmentation"] = encode_mask(mask.numpy())
    return results


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


def _renumber_images(gt: COCO) -> dict[int | str, int]:
    """Renumber a ground truth's images by `_number_ids`; returns old id -> new id."""
    numbers = _number_ids({image_key(image["id"]) for image in gt.dataset["images"]})
    for name, key in (("images", "id"), ("annotations", "image_id")):
        for entry in gt.dataset.get(name, ()):
            entry[key] = numbers.get(image_key(entry[key]))
    with contextlib.redirect_stdout(io.StringIO()):  # it prints to stdout
        gt.createIndex()
    return numbers


def _number_ids(keys: Collection[int | str]) -> dict[int | str, int]:
    """Number image ids 1, 2, ... in their order.

    COCOeval puts all ids into a NumPy array, which fails for a mix of numbers and strings and turns numbers beyond 2^63
    into floats.
    """
    ordered = sorted(keys, key=lambda key: (isinstance(key, str), key))
    return {key: number for number, key in enumerate(ordered, 1)}


class _Things(NamedTuple):
    """One image's size, and its things in COCO's format without their `id`."""

    height: int
    width: int
    annotations: list[dict[str, Any]]


class _DerivedJson:
    """The things of a panoptic dataset as a COCO instance JSON (masks as RLE).

    A file derived from the same panoptic JSON and PNGs is kept. Otherwise, the things of images given to `add` are
    encoded there, those of all other images when `write` writes the file.

    Args:
        dataset_name: a registered dataset with panoptic ground truth.
        path: the file to write; psf must have written an existing one.
        distributed: all processes have images; build the object and call `write` together.
    """

    def __init__(self, dataset_name: str, path: Path, *, distributed: bool = True) -> None:
        self.gt = PanopticGroundTruth(dataset_name)
        self._path, self._distributed = path, distributed
        self._encoded: dict[int | str, _Things] = {}
        self._source: dict[str, str] = {}
        is_current = False
        if comm.is_main_process() or not distributed:
            self._source = _describe_source(self.gt)  # of now: files that change later make the JSON outdated
            is_current = _read_source(path) == self._source
        self.is_current = bool(comm.all_gather(is_current)[0]) if distributed else is_current

    def add(self, image: dict[str, Any]) -> None:
        """Encode the things of an input dict with "image_id"."""
        key = image_key(image["image_id"])
        if not self.is_current and key not in self._encoded:
            self._encoded[key] = _encode_things(self.gt.of(image), self.gt.thing_ids)

    def write(self) -> None:
        """Write the file, unless it is current, in the main process.

        Raises:
            UserError: if a PNG cannot be read, or psf has not written an existing file.
        """
        if self.is_current:
            return
        gathered = comm.gather(self._encoded) if self._distributed else [self._encoded]
        if comm.is_main_process() or not self._distributed:
            logger.info("Writing instance masks from the panoptic PNGs: %s", self._path)
            encoded = {key: things for part in gathered for key, things in part.items()}
            write_own_text(self._path, json.dumps({"info": self._source, **self._content(encoded)}))
        if self._distributed:
            comm.synchronize()
        self._encoded = {}
        self.is_current = True

    def _content(self, encoded: dict[int | str, _Things]) -> dict[str, list[dict[str, Any]]]:
        """The content of a COCO instance JSON: images, categories and annotations."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for image_id in self.gt.annotations:
            things = encoded.get(image_id) or _encode_things(self.gt.read(image_id), self.gt.thing_ids)
            images.append({"id": image_id, "height": things.height, "width": things.width})
            for one in things.annotations:
                annotations.append({"id": len(annotations) + 1, "image_id": image_id, **one})
        categories = [
            {"id": key, "name": category["name"]}
            for key, category in self.gt.categories.items()
            if key in self.gt.thing_ids
        ]
        return {"images": images, "categories": categories, "annotations": annotations}


def write_instance_json(dataset_name: str, path: Path) -> None:
    """Write the things of a panoptic dataset as a COCO instance JSON (masks as RLE), in the main process.

    A file derived from the same panoptic JSON and PNGs is kept. All processes must call this together.

    Raises:
        UserError: if a PNG cannot be read, or psf has not written an existing file.
    """
    _DerivedJson(dataset_name, path).write()


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """COCO's RLE of an (H, W) mask, as JSON."""
    pixels = mask.view(np.uint8) if mask.dtype == np.bool_ else mask.astype(np.uint8)
    # The encoder reads columns. NumPy's transposition takes longer than the encoder.
    columns = cv2.transpose(pixels).T if pixels.size else np.asfortranarray(pixels)
    encoded = mask_util.encode(columns)
    return {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}


def _encode_things(gt: ImageGroundTruth, thing_ids: dict[int, int]) -> _Things:
    annotations = []
    for segment in gt.segments:
        if segment["category_id"] not in thing_ids:
            continue
        mask = encode_mask(gt.labels == segment["id"])
        annotations.append(
            {
                "category_id": segment["category_id"],
                "iscrowd": int(segment.get("iscrowd", 0)),
                "area": int(mask_util.area(mask)),
                "bbox": mask_util.toBbox(mask).tolist(),
                "segmentation": mask,
            }
        )
    return _Things(gt.labels.shape[0], gt.labels.shape[1], annotations)


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


def _read_source(path: Path) -> Any:
    """The fingerprint at the beginning of an instance JSON, without parsing the rest; None if psf has written none."""
    try:
        with path.open(encoding="utf-8") as file:
            start = file.read(4 * 4096)  # two paths of at most 4096 characters, and what JSON adds to them
    except (OSError, UnicodeDecodeError):
        return None
    if not start.startswith(_OPENING):
        return None
    try:
        return json.JSONDecoder().raw_decode(start, len(_OPENING))[0]
    except ValueError:
        return None
