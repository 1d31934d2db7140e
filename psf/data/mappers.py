"""Data set dict -> what the model takes: the image and, in training, a compact label map with its segments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.utils.registry import Registry

from psf.data.augmentations import VOID_CLASS, build_augmentations, crop_and_color, large_scale_jitter
from psf.data.dataset_check import require_file
from psf.data.images import in_format, read_image
from psf.data.panoptic_truth import PanopticLabels, compact_with_boxes, read_panoptic_labels
from psf.data.shapes_scene import make_scene

__all__ = ["DATASET_MAPPER_REGISTRY", "PanopticMapper", "build_mapper"]

DATASET_MAPPER_REGISTRY = Registry("PSF_DATASET_MAPPER")
DATASET_MAPPER_REGISTRY.__doc__ = "Functions (cfg, is_train) -> mapper; INPUT.DATASET_MAPPER_NAME names one of them."


def build_mapper(cfg: CfgNode, is_train: bool) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Build the mapper that INPUT.DATASET_MAPPER_NAME names.

    Raises:
        ValueError: naming that key and the known mappers, if there is none of that name.
    """
    name = cfg.INPUT.DATASET_MAPPER_NAME
    if name not in DATASET_MAPPER_REGISTRY:
        known = ", ".join(sorted(key for key, _ in DATASET_MAPPER_REGISTRY))
        raise ValueError(f"INPUT.DATASET_MAPPER_NAME is {name!r}, expected one of: {known}")
    return DATASET_MAPPER_REGISTRY.get(name)(cfg, is_train)


class PanopticMapper:
    """Maps dicts of any COCO panoptic set, and of the generated shapes, for PanopticSegFormer.

    Takes Detectron2's dicts with `file_name`, and in training `pan_seg_file_name` and `segments_info` (id,
    category_id, isthing, iscrowd); or `psf_scene`, the arguments of a scene to be made.

    Returns, in training: image (C, H, W) in INPUT.FORMAT, uint8, or float32 of bands that are not; height and width of
    the file; file_name; image_id; panoptic_labels (H, W) integers, 0 is void and k > 0 the segment with that id;
    segments_info, a list of {"id": 1..S, "category_id", "isthing", "iscrowd"} with those alone that the augmentation
    left in the image; panoptic_boxes_xyxy_px (S, 4) int32, the box of each, x1 and y1 exclusive. Masks are made on the
    model's device.
    At test: the dict itself, with image, height and width.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        num_channels: int | None = None,
    ):
        """
        Args:
            is_train: whether to return the truth.
            augmentations: applied to the image and, nearest, to the label map.
            image_format: "RGB", "BGR", "L" or "BANDS", see `read_image`.
            num_channels: of the model; None: of "BANDS", any number is taken.
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format, self.num_channels = image_format, num_channels

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool) -> dict[str, Any]:
        return {
            "is_train": is_train,
            "augmentations": build_augmentations(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
            "num_channels": len(cfg.MODEL.PIXEL_MEAN),
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one dict, which stays as it is.

        Raises:
            ValueError: naming the file, if one is missing or damaged or image and truth do not fit each other.
        """
        image, truth = self.read(dataset_dict)
        output = {"height": image.shape[0], "width": image.shape[1], **dataset_dict}
        inputs = T.AugInput(image) if truth is None else _ImageAndClasses(image, truth)
        transforms = self.augmentations(inputs)
        output["image"] = torch.from_numpy(inputs.image.transpose(2, 0, 1).copy())
        if truth is None:
            return output
        truth, boxes = transform_truth(transforms, truth)
        output = {key: output[key] for key in ("image", "height", "width", "file_name", "image_id")}
        output["panoptic_labels"] = torch.from_numpy(np.require(truth.labels, requirements=["C", "W"]))
        output["panoptic_boxes_xyxy_px"] = torch.from_numpy(boxes)
        output["segments_info"] = truth.segments
        return output

    def read(self, dataset_dict: dict[str, Any]) -> tuple[np.ndarray, PanopticLabels | None]:
        """The image as it is in its file, and in training its truth; what is wrong with them is raised here."""
        image, truth = self._read(dataset_dict)
        height, width = image.shape[:2]
        said = dataset_dict.get("width", width), dataset_dict.get("height", height)
        if said != (width, height):
            raise ValueError(
                f"{dataset_dict.get('file_name')} is {_size(image)} pixels, but the JSON of its data set says "
                f"{said[0]} x {said[1]} (width x height): correct it there, tools/validate_dataset.py --fix does"
            )
        return image, truth

    def _read(self, dataset_dict: dict[str, Any]) -> tuple[np.ndarray, PanopticLabels | None]:
        if "psf_scene" in dataset_dict:
            scene = make_scene(**dataset_dict["psf_scene"])
            truth = PanopticLabels(scene.labels, scene.segments) if self.is_train else None
            return in_format(scene.image, self.image_format), truth

        file_name = dataset_dict["file_name"]
        require_file(file_name)
        image = read_image(file_name, self.image_format, self.num_channels)
        if not self.is_train:
            return image, None
        if "pan_seg_file_name" not in dataset_dict or "segments_info" not in dataset_dict:
            raise ValueError(
                f"{file_name}: no panoptic truth (pan_seg_file_name and segments_info) in its data set's dicts; give "
                'DATASETS.TRAIN a panoptic set with annotations, such as "coco_2017_train_panoptic", or use another '
                "INPUT.DATASET_MAPPER_NAME"
            )
        require_file(dataset_dict["pan_seg_file_name"])
        truth = read_panoptic_labels(dataset_dict["pan_seg_file_name"], dataset_dict["segments_info"])
        if truth.labels.shape != image.shape[:2]:
            raise ValueError(
                f"{dataset_dict['pan_seg_file_name']} is {_size(truth.labels)} pixels, but its image {file_name} "
                f"is {_size(image)} (width x height)"
            )
        return image, truth


@DATASET_MAPPER_REGISTRY.register()
def psf_panoptic(cfg: CfgNode, is_train: bool) -> PanopticMapper:
    """The paper's: DETR's multi-scale resize and crop (`build_augmentations`)."""
    return PanopticMapper(cfg, is_train)


@DATASET_MAPPER_REGISTRY.register()
def psf_panoptic_lsj(cfg: CfgNode, is_train: bool) -> PanopticMapper:
    """Large-scale jitter (`large_scale_jitter`)."""
    return PanopticMapper(cfg, True, augmentations=large_scale_jitter(cfg)) if is_train else psf_panoptic(cfg, False)


@DATASET_MAPPER_REGISTRY.register()
def psf_panoptic_cityscapes(cfg: CfgNode, is_train: bool) -> PanopticMapper:
    """Crops of one size and changed colours (`crop_and_color`)."""
    return PanopticMapper(cfg, True, augmentations=crop_and_color(cfg)) if is_train else psf_panoptic(cfg, False)


class _ImageAndClasses:
    """An image for Detectron2's augmentations; its class map is made when one of them asks for `sem_seg`."""

    def __init__(self, image: np.ndarray, truth: PanopticLabels) -> None:
        self.image = image
        self._truth = truth
        self._transforms = T.TransformList([])

    def transform(self, transform: T.Transform) -> None:
        self.image = transform.apply_image(self.image)
        self._transforms += transform

    @property
    def sem_seg(self) -> np.ndarray:
        """(H, W) of the image as it is now: VOID_CLASS, or 1 + the category id."""
        classes = [VOID_CLASS, *(segment["category_id"] + 1 for segment in self._truth.segments)]
        return np.array(classes)[_apply_to_labels(self._transforms, self._truth.labels)]


def transform_truth(transforms: T.TransformList, truth: PanopticLabels) -> tuple[PanopticLabels, np.ndarray]:
    """What the image's transforms leave of the truth, and its boxes: see `compact_with_boxes`."""
    return compact_with_boxes(_apply_to_labels(transforms, truth.labels), truth.segments)


def _apply_to_labels(transforms: T.TransformList, labels: np.ndarray) -> np.ndarray:
    """Detectron2 resizes bytes with Pillow and other types with torch, whose "nearest" lies half a pixel off."""
    if labels.dtype == np.uint8:
        return transforms.apply_segmentation(labels)
    shifts = range(0, 8 * labels.itemsize, 8)
    parts = [transforms.apply_segmentation((labels >> shift & 0xFF).astype(np.uint8)) for shift in shifts]
    return sum(part.astype(labels.dtype) << shift for part, shift in zip(parts, shifts, strict=True))


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"
