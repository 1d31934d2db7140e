"""The augmentations that the mappers choose from, of Detectron2's own parts and the INPUT keys."""

from __future__ import annotations

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T

__all__ = ["VOID_CLASS", "build_augmentations", "crop_and_color", "large_scale_jitter"]

# What void is in the class map that the limited crop looks at; class k is k + 1 there.
VOID_CLASS = 0

# Sides to which an image is resized before it is cropped (DETR's augmentation, as in the released training).
_SHORT_SIDES_BEFORE_CROP, _MAX_SIZE_BEFORE_CROP = (400, 500, 600), 4200


def build_augmentations(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """The augmentations of the INPUT keys, as the paper trains (DETR's), and for any mapper at test.

    In training: flip by RANDOM_FLIP; resize to a short side of MIN_SIZE_TRAIN (by MIN_SIZE_TRAIN_SAMPLING), the long
    side at most MAX_SIZE_TRAIN. With CROP.ENABLED, half of the images are cropped before the resize, by
    CROP.TYPE and CROP.SIZE; where these are in pixels, the image is first brought to a short side of 400, 500 or 600
    (the released training: "absolute_range", [384, 600]). At test: resize by MIN_SIZE_TEST and MAX_SIZE_TEST.
    """
    if not is_train:
        return [_ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")]
    augmentations = _flip(cfg)
    if cfg.INPUT.CROP.ENABLED:
        crop: list[T.Augmentation] = [T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE)]
        if cfg.INPUT.CROP.TYPE.startswith("absolute"):
            crop.insert(0, _ResizeShortestEdge(_SHORT_SIDES_BEFORE_CROP, _MAX_SIZE_BEFORE_CROP, "choice"))
        augmentations.append(T.RandomApply(T.AugmentationList(crop), prob=0.5))
    return [*augmentations, _multi_scale(cfg)]


def large_scale_jitter(cfg: CfgNode) -> list[T.Augmentation]:
    """LSJ: flip, a random scale, then a square of INPUT.IMAGE_SIZE pixels, cropped or padded with gray and void.

    At scale 1 the image just fits into the square; the scale is uniform in [MIN_SCALE, MAX_SCALE]. Every image of a
    batch has the same size, so nothing else is padded.
    """
    keys = cfg.INPUT
    if not (0 < keys.MIN_SCALE <= keys.MAX_SCALE and keys.IMAGE_SIZE > 0):
        raise ValueError(
            f"INPUT.MIN_SCALE, MAX_SCALE and IMAGE_SIZE are {keys.MIN_SCALE}, {keys.MAX_SCALE} and {keys.IMAGE_SIZE}, "
            "expected 0 < MIN_SCALE <= MAX_SCALE and a side of at least a pixel"
        )
    side = keys.IMAGE_SIZE
    jitter = _ResizeScale(keys.MIN_SCALE, keys.MAX_SCALE, side, side)
    return [*_flip(cfg), jitter, T.FixedSizeCrop((side, side), seg_pad_value=0), *_color(cfg)]


def crop_and_color(cfg: CfgNode) -> list[T.Augmentation]:
    """As Cityscapes is trained on: flip, resize as in `build_augmentations`, crop every image, change its colours.

    With CROP.ENABLED the crop is by CROP.TYPE and CROP.SIZE. A place is looked for, ten times at most, where no class
    takes more than CROP.SINGLE_CATEGORY_MAX_AREA of the crop's labelled pixels. Colours are changed with COLOR_AUG_SSD.
    """
    augmentations = [*_flip(cfg), _multi_scale(cfg)]
    if cfg.INPUT.CROP.ENABLED:
        largest = cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA
        if not 0 < largest <= 1:
            raise ValueError(
                f"INPUT.CROP.SINGLE_CATEGORY_MAX_AREA is {largest}, expected a share in (0, 1]; 1: no limit"
            )
        crop = T.RandomCrop_CategoryAreaConstraint(
            cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE, single_category_max_area=largest, ignored_category=VOID_CLASS
        )
        augmentations.append(crop)
    return [*augmentations, *_color(cfg)]


def _flip(cfg: CfgNode) -> list[T.Augmentation]:
    flip = cfg.INPUT.RANDOM_FLIP
    if flip not in ("none", "horizontal", "vertical"):
        raise ValueError(f"INPUT.RANDOM_FLIP is {flip!r}, expected 'none', 'horizontal' or 'vertical'")
    return [] if flip == "none" else [T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical")]


def _multi_scale(cfg: CfgNode) -> T.Augmentation:
    keys = cfg.INPUT
    return _ResizeShortestEdge(keys.MIN_SIZE_TRAIN, keys.MAX_SIZE_TRAIN, keys.MIN_SIZE_TRAIN_SAMPLING)


def _color(cfg: CfgNode) -> list[T.Augmentation]:
    """Brightness, contrast and saturation, half of the time each, in the ranges of SSD; its hue is left as it is."""
    if not cfg.INPUT.COLOR_AUG_SSD:
        return []
    changes = (T.RandomBrightness(0.875, 1.125), T.RandomContrast(0.5, 1.5), T.RandomSaturation(0.5, 1.5))
    return [T.RandomApply(change, prob=0.5) for change in changes]


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


class _ResizeScale(T.ResizeScale):
    """Detectron2's, with the same care for very long images."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        scale = np.random.uniform(self.min_scale, self.max_scale)
        scale *= min(self.target_height / height, self.target_width / width)
        new_height, new_width = (max(round(side * scale), 1) for side in (height, width))
        return T.ResizeTransform(height, width, new_height, new_width, self.interp)
