"""Derive a COCO instance JSON, the ground truth of AP, from panoptic ground truth."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pycocotools.mask as mask_util
from detectron2.utils import comm

from psf.data import image_key
from psf.data.own_files import write_own_text
from psf.evaluation.ground_truth import ImageGroundTruth, PanopticGroundTruth

__all__ = ["InstanceJson", "encode_mask", "write_instance_json"]

logger = logging.getLogger(__name__)

_OPENING = '{"info": '


class _Things(NamedTuple):
    """One image's size, and its things in COCO's format without their `id`."""

    height: int
    width: int
    annotations: list[dict[str, Any]]


class InstanceJson:
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
    """Write the things of a panoptic dataset as a COCO instance JSON, see `InstanceJson`; all processes call it together.

    Raises:
        UserError: as `InstanceJson.write`.
    """
    InstanceJson(dataset_name, path).write()


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
