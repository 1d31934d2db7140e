"""Map a dataset dict to an input of the model: the image and, in training, a compact label map with its segments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.registry import Registry

from psf.data.augmentations import VOID_CLASS, build_augmentations, crop_and_color, large_scale_jitter
from psf.data.dataset_check import require_file
from psf.data.images import in_format, limit_pixels, read_image
from psf.data.panoptic_labels import PanopticLabels, compact_with_boxes, read_panoptic_labels
from psf.data.shapes.scene import make_scene
from psf.errors import UserError

__all__ = ["DATASET_MAPPER_REGISTRY", "PanopticMapper", "build_mapper"]

DATASET_MAPPER_REGISTRY = Registry("PSF_DATASET_MAPPER")
_INSTANCES = ("none", "things", "segments")
DATASET_MAPPER_REGISTRY.__doc__ = "Functions (cfg, is_train) -> mapper, selected by INPUT.DATASET_MAPPER_NAME."


def build_mapper(cfg: CfgNode, is_train: bool) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Build the mapper that INPUT.DATASET_MAPPER_NAME names.

    Raises:
        UserError: naming this key and the known mappers, if no mapper has this name.
    """
    name = cfg.INPUT.DATASET_MAPPER_NAME
    if name not in DATASET_MAPPER_REGISTRY:
        known = ", ".join(sorted(key for key, _ in DATASET_MAPPER_REGISTRY))
        raise UserError(f"INPUT.DATASET_MAPPER_NAME is {name!r}, expected one of: {known}")
    return DATASET_MAPPER_REGISTRY.get(name)(cfg, is_train)


class PanopticMapper:
    """Maps dicts of any COCO panoptic set, and of the generated shapes, for PanopticSegFormer.

    Takes Detectron2's dicts with `file_name`, and in training `pan_seg_file_name` and `segments_info` (id,
    category_id, isthing, iscrowd); or `psf_scene`, the arguments of `make_scene`.

    Returns, in training: image (C, H, W) in INPUT.FORMAT, uint8, or float32 for other bands; height and width of
    the file; file_name; image_id; panoptic_labels (H, W) integers, 0 is void and k > 0 the segment with that id;
    segments_info, a list of {"id": 1..S, "category_id", "isthing", "iscrowd"} for the segments that remain after
    augmentation; panoptic_boxes_xyxy_px (S, 4) int32, the box of each, x1 and y1 exclusive; and, for other models,
    `instances` (see `make_instances`). The model makes masks on its device. At test: a copy of the dict, with image,
    height and width.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        num_channels: int | None = None,
        max_pixels: int | None = None,
        instances: str = "none",
    ):
        """
        Args:
            is_train: whether to return the ground truth.
            augmentations: for the image and, with nearest-neighbour interpolation, the label map.
            image_format: "RGB", "BGR", "L" or "BANDS", see `read_image`.
            num_channels: of the model; None: any number of "BANDS".
            max_pixels: for `limit_pixels`; None: the limit of the process stays.
            instances: ground truth for other models, "none", "things" or "segments", see `make_instances`.
        """
        if instances not in _INSTANCES:
            raise UserError(f"INPUT.PSF_INSTANCES is {instances!r}, expected one of {', '.join(_INSTANCES)}")
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format, self.num_channels, self.max_pixels = image_format, num_channels, max_pixels
        self._limit_pixels()  # evaluators read the ground truth in this process
        self.instances = instances

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool) -> dict[str, Any]:
        return {
            "is_train": is_train,
            "augmentations": build_augmentations(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
            "num_channels": len(cfg.MODEL.PIXEL_MEAN),
            "max_pixels": cfg.INPUT.PSF_MAX_PIXELS,
            "instances": cfg.INPUT.PSF_INSTANCES,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one dict, without changing it.

        Raises:
            UserError: naming the file, if it is missing or damaged, or image and ground truth do not match.
        """
        image, gt = self.read(dataset_dict)
        output = {"height": image.shape[0], "width": image.shape[1], **dataset_dict}
        inputs = T.AugInput(image) if gt is None else _ImageAndClasses(image, gt)
        transforms = self.augmentations(inputs)
        output["image"] = torch.from_numpy(inputs.image.transpose(2, 0, 1).copy())
        if gt is None:
            return output
        gt, boxes = transform_gt(transforms, gt)
        output = {key: output[key] for key in ("image", "height", "width", "file_name", "image_id")}
        output["panoptic_labels"] = torch.from_numpy(np.require(gt.labels, requirements=["C", "W"]))
        output["panoptic_boxes_xyxy_px"] = torch.from_numpy(boxes)
        output["segments_info"] = gt.segments
        if self.instances != "none":
            output["instances"] = make_instances(gt, boxes, self.instances)
        return output

    def read(self, dataset_dict: dict[str, Any]) -> tuple[np.ndarray, PanopticLabels | None]:
        """Read the image of a dict and, in training, its ground truth, before augmentation."""
        self._limit_pixels()  # in a worker process
        image, gt = self._read(dataset_dict)
        height, width = image.shape[:2]
        listed = dataset_dict.get("width", width), dataset_dict.get("height", height)
        if listed != (width, height):
            raise UserError(
                f"{dataset_dict.get('file_name')} is {_size(image)} pixels, but the JSON of its dataset has "
                f"{listed[0]} x {listed[1]} (width x height); psf validate --fix corrects the JSON"
            )
        return image, gt

    def _limit_pixels(self) -> None:
        if self.max_pixels is not None:
            limit_pixels(self.max_pixels)

    def _read(self, dataset_dict: dict[str, Any]) -> tuple[np.ndarray, PanopticLabels | None]:
        if "psf_scene" in dataset_dict:
            scene = make_scene(**dataset_dict["psf_scene"])
            gt = PanopticLabels(scene.labels, scene.segments) if self.is_train else None
            return in_format(scene.image, self.image_format), gt

        file_name = dataset_dict["file_name"]
        require_file(file_name)
        image = read_image(file_name, self.image_format, self.num_channels)
        if not self.is_train:
            return image, None
        if "pan_seg_file_name" not in dataset_dict or "segments_info" not in dataset_dict:
            raise UserError(
                f"{file_name}: no panoptic ground truth (pan_seg_file_name, segments_info) in its dataset dict; set "
                'DATASETS.TRAIN to a panoptic set with annotations, such as "coco_2017_train_panoptic", or use another '
                "INPUT.DATASET_MAPPER_NAME"
            )
        require_file(dataset_dict["pan_seg_file_name"])
        gt = read_panoptic_labels(dataset_dict["pan_seg_file_name"], dataset_dict["segments_info"])
        if gt.labels.shape != image.shape[:2]:
            raise UserError(
                f"{dataset_dict['pan_seg_file_name']} is {_size(gt.labels)} pixels, but its image {file_name} "
                f"is {_size(image)} (width x height)"
            )
        return image, gt


@DATASET_MAPPER_REGISTRY.register()
def psf_panoptic(cfg: CfgNode, is_train: bool) -> PanopticMapper:
    """The paper's augmentation: DETR's multi-scale resize and crop (`build_augmentations`)."""
    return PanopticMapper(cfg, is_train)


@DATASET_MAPPER_REGISTRY.register()
def psf_panoptic_lsj(cfg: CfgNode, is_train: bool) -> PanopticMapper:
    """Large-scale jitter (`large_scale_jitter`)."""
    if is_train and cfg.INPUT.CROP.ENABLED:
        raise UserError(
            'INPUT.CROP.ENABLED is True: INPUT.DATASET_MAPPER_NAME "psf_panoptic_lsj" crops to INPUT.IMAGE_SIZE; set '
            "CROP.ENABLED to False"
        )
    return PanopticMapper(cfg, True, augmentations=large_scale_jitter(cfg)) if is_train else psf_panoptic(cfg, False)


@DATASET_MAPPER_REGISTRY.register()
def psf_panoptic_cityscapes(cfg: CfgNode, is_train: bool) -> PanopticMapper:
    """Crops of one size and changed colours (`crop_and_color`)."""
    return PanopticMapper(cfg, True, augmentations=crop_and_color(cfg)) if is_train else psf_panoptic(cfg, False)


class _ImageAndClasses:
    """An image for Detectron2's augmentations; its class map is computed when an augmentation reads `sem_seg`."""

    def __init__(self, image: np.ndarray, gt: PanopticLabels) -> None:
        self.image = image
        self._gt = gt
        self._transforms = T.TransformList([])

    def transform(self, transform: T.Transform) -> None:
        self.image = transform.apply_image(self.image)
        self._transforms += transform

    @property
    def sem_seg(self) -> np.ndarray:
        """(H, W) classes of the transformed image: VOID_CLASS, or 1 + the category id."""
        classes = [VOID_CLASS, *(segment["category_id"] + 1 for segment in self._gt.segments)]
        return np.array(classes)[_apply_to_labels(self._transforms, self._gt.labels)]


def make_instances(gt: PanopticLabels, boxes_xyxy_px: np.ndarray, kind: str) -> Instances:
    """Ground truth as Detectron2's Instances: gt_classes (contiguous ids), gt_boxes and gt_masks, without crowds.

    Args:
        gt: of one image, with S segments.
        boxes_xyxy_px: (S, 4), x1 and y1 exclusive.
        kind: "things": things alone, gt_masks are BitMasks. "segments": also stuff, gt_masks are a bool tensor
            (N, H, W).
    """
    rows = [
        row
        for row, segment in enumerate(gt.segments)
        if not segment["iscrowd"] and (segment["isthing"] or kind == "segments")
    ]
    ids = np.array([gt.segments[row]["id"] for row in rows], gt.labels.dtype)
    masks = torch.from_numpy(gt.labels == ids[:, None, None])
    instances = Instances(gt.labels.shape)
    instances.gt_classes = torch.tensor([gt.segments[row]["category_id"] for row in rows], dtype=torch.long)
    instances.gt_boxes = Boxes(torch.from_numpy(boxes_xyxy_px[rows].reshape(-1, 4)).float())
    instances.gt_masks = BitMasks(masks) if kind == "things" else masks
    return instances


def transform_gt(transforms: T.TransformList, gt: PanopticLabels) -> tuple[PanopticLabels, np.ndarray]:
    """Apply an image's transforms to its ground truth; returns it with its boxes, see `compact_with_boxes`."""
    return compact_with_boxes(_apply_to_labels(transforms, gt.labels), gt.segments)


def _apply_to_labels(transforms: T.TransformList, labels: np.ndarray) -> np.ndarray:
    """Transform each byte alone: Detectron2 resizes other types with torch, whose "nearest" is half a pixel off."""
    if labels.dtype == np.uint8:
        return transforms.apply_segmentation(labels)
    shifts = range(0, 8 * labels.itemsize, 8)
    parts = [transforms.apply_segmentation((labels >> shift & 0xFF).astype(np.uint8)) for shift in shifts]
    return sum(part.astype(labels.dtype) << shift for part, shift in zip(parts, shifts, strict=True))


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"
