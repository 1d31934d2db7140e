"""Data set dict -> what the model takes: the image and, in training, a compact label map with its segments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.data.detection_utils import check_image_size
from detectron2.utils.registry import Registry

from psf.data.dataset_check import require_file
from psf.data.images import in_format, read_image
from psf.data.panoptic_truth import PanopticLabels, compact_with_boxes, read_panoptic_labels
from psf.data.shapes_scene import make_scene

__all__ = ["DATASET_MAPPER_REGISTRY", "PanopticMapper", "build_augmentations", "build_mapper"]

DATASET_MAPPER_REGISTRY = Registry("PSF_DATASET_MAPPER")
DATASET_MAPPER_REGISTRY.__doc__ = "Functions (cfg, is_train) -> mapper; INPUT.DATASET_MAPPER_NAME names one of them."

# Sides to which an image is resized before it is cropped (DETR's augmentation, as in the released training).
_SHORT_SIDES_BEFORE_CROP, _MAX_SIZE_BEFORE_CROP = (400, 500, 600), 4200


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


def build_augmentations(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """The augmentations of the INPUT keys.

    In training: flip by RANDOM_FLIP; resize to a short side of MIN_SIZE_TRAIN (by MIN_SIZE_TRAIN_SAMPLING), the long
    side at most MAX_SIZE_TRAIN. With CROP.ENABLED, half of the images are cropped before the resize, by
    CROP.TYPE and CROP.SIZE; where these are in pixels, the image is first brought to a short side of 400, 500 or 600
    (the released training: "absolute_range", [384, 600]). At test: resize by MIN_SIZE_TEST and MAX_SIZE_TEST.
    """
    if not is_train:
        return [_ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")]
    augmentations: list[T.Augmentation] = []
    flip = cfg.INPUT.RANDOM_FLIP
    if flip not in ("none", "horizontal", "vertical"):
        raise ValueError(f"INPUT.RANDOM_FLIP is {flip!r}, expected 'none', 'horizontal' or 'vertical'")
    if flip != "none":
        augmentations.append(T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical"))
    if cfg.INPUT.CROP.ENABLED:
        crop: list[T.Augmentation] = [T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE)]
        if cfg.INPUT.CROP.TYPE.startswith("absolute"):
            crop.insert(0, _ResizeShortestEdge(_SHORT_SIDES_BEFORE_CROP, _MAX_SIZE_BEFORE_CROP, "choice"))
        augmentations.append(T.RandomApply(T.AugmentationList(crop), prob=0.5))
    augmentations.append(
        _ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING)
    )
    return augmentations


class PanopticMapper:
    """Maps dicts of any COCO panoptic set, and of the generated shapes, for PanopticSegFormer.

    Takes Detectron2's dicts with `file_name`, and in training `pan_seg_file_name` and `segments_info` (id,
    category_id, isthing, iscrowd); or `psf_scene`, the arguments of a scene to be made.

    Returns, in training: image (3, H, W) uint8 in INPUT.FORMAT; height and width of the file; file_name; image_id;
    panoptic_labels (H, W) integers, 0 is void and k > 0 the segment with that id; segments_info, a list of
    {"id": 1..S, "category_id", "isthing", "iscrowd"} with those alone that the augmentation left in the image;
    panoptic_boxes_xyxy_px (S, 4) int32, the box of each, x1 and y1 exclusive. Masks are made on the model's device.
    At test: the dict itself, with image, height and width.
    """

    @configurable
    def __init__(self, is_train: bool, *, augmentations: Sequence[T.Augmentation | T.Transform], image_format: str):
        """
        Args:
            is_train: whether to return the truth.
            augmentations: applied to the image and, nearest, to the label map.
            image_format: "RGB" or "BGR".
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool) -> dict[str, Any]:
        return {
            "is_train": is_train,
            "augmentations": build_augmentations(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one dict, which stays as it is.

        Raises:
            ValueError: naming the file, if one is missing or damaged or image and truth do not fit each other.
        """
        image, truth = self._read(dataset_dict)
        output = dict(dataset_dict)
        check_image_size(output, image)
        inputs = T.AugInput(image)
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

    def _read(self, dataset_dict: dict[str, Any]) -> tuple[np.ndarray, PanopticLabels | None]:
        if "psf_scene" in dataset_dict:
            scene = make_scene(**dataset_dict["psf_scene"])
            truth = PanopticLabels(scene.labels, scene.segments) if self.is_train else None
            return in_format(scene.image, self.image_format), truth

        file_name = dataset_dict["file_name"]
        require_file(file_name)
        image = read_image(file_name, self.image_format)
        if not self.is_train:
            return image, None
        if "pan_seg_file_name" not in dataset_dict or "segments_info" not in dataset_dict:
            raise ValueError(
                f"{file_name}: no panoptic truth (pan_seg_file_name and segments_info) in its data set's dicts; give "
                'DATASETS.TRAIN a panoptic set, such as "coco_2017_train_panoptic", or use another '
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
    return PanopticMapper(cfg, is_train)


class _ResizeShortestEdge(T.ResizeShortestEdge):
    """Detectron2's, which turns very long images into nothing: here no side becomes shorter than a pixel."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        sides = self.short_edge_length
        size = int(np.random.randint(sides[0], sides[1] + 1) if self.is_range else np.random.choice(sides))
        if size == 0:
            return T.NoOpTransform()
        new_height, new_width = self.get_output_shape(height, width, size, self.max_size)
        return T.ResizeTransform(height, width, max(new_height, 1), max(new_width, 1), self.interp)


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
