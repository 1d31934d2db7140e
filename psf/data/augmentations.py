"""Augmentations of the mappers, built from Detectron2's and the INPUT keys."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from PIL import Image

from psf.errors import UserError

__all__ = ["VOID_CLASS", "build_augmentations", "crop_and_color", "large_scale_jitter"]

# Value of void in the class map for the crop with SINGLE_CATEGORY_MAX_AREA; class k is k + 1 there.
VOID_CLASS = 0

# Sides to which an image is resized before it is cropped (DETR's augmentation, as in the released training).
_SHORT_SIDES_BEFORE_CROP, _MAX_SIZE_BEFORE_CROP = (400, 500, 600), 4200


def build_augmentations(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """The paper's augmentations (DETR's) by the INPUT keys, and the resize at test for any mapper.

    In training: flip by RANDOM_FLIP; resize to a short side of MIN_SIZE_TRAIN (by MIN_SIZE_TRAIN_SAMPLING), the long
    side at most MAX_SIZE_TRAIN. With CROP.ENABLED, half of the images are cropped before the resize, by
    CROP.TYPE and CROP.SIZE; if these are in pixels, the image is first resized to a short side of 400, 500 or 600
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

    Images of INPUT.FORMAT "BANDS" are padded with MODEL.PIXEL_MEAN, since gray has no meaning in unknown units.

    At scale 1 the image just fits into the square; the scale is uniform in [MIN_SCALE, MAX_SCALE]. All images of a
    batch have the same size, so there is no other padding.
    """
    keys = cfg.INPUT
    if not (0 < keys.MIN_SCALE <= keys.MAX_SCALE and keys.IMAGE_SIZE > 0):
        raise UserError(
            f"INPUT.MIN_SCALE, MAX_SCALE and IMAGE_SIZE are {keys.MIN_SCALE}, {keys.MAX_SCALE} and {keys.IMAGE_SIZE}, "
            "expected 0 < MIN_SCALE <= MAX_SCALE and IMAGE_SIZE of at least a pixel"
        )
    side = keys.IMAGE_SIZE
    jitter = _ResizeScale(keys.MIN_SCALE, keys.MAX_SCALE, side, side)
    crop = T.FixedSizeCrop((side, side), seg_pad_value=0)
    if cfg.INPUT.FORMAT == "BANDS":
        crop = _CropPaddedWithMeans(side, cfg.MODEL.PIXEL_MEAN)
    return [*_flip(cfg), jitter, crop, *_color(cfg)]


def crop_and_color(cfg: CfgNode) -> list[T.Augmentation]:
    """Augmentations for Cityscapes: flip, resize as in `build_augmentations`, crop of every image, colour changes.

    With CROP.ENABLED, images are cropped by CROP.TYPE and CROP.SIZE. Up to ten random crops are tried until no class
    has more than CROP.SINGLE_CATEGORY_MAX_AREA of the crop's labelled pixels. Colours are changed with COLOR_AUG_SSD.
    """
    augmentations = [*_flip(cfg), _multi_scale(cfg)]
    if cfg.INPUT.CROP.ENABLED:
        largest = cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA
        if not 0 < largest <= 1:
            raise UserError(
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
        raise UserError(f"INPUT.RANDOM_FLIP is {flip!r}, expected 'none', 'horizontal' or 'vertical'")
    return [] if flip == "none" else [T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical")]


def _multi_scale(cfg: CfgNode) -> T.Augmentation:
    keys = cfg.INPUT
    return _ResizeShortestEdge(keys.MIN_SIZE_TRAIN, keys.MAX_SIZE_TRAIN, keys.MIN_SIZE_TRAIN_SAMPLING)


def _color(cfg: CfgNode) -> list[T.Augmentation]:
    """Brightness, contrast and saturation in the ranges of SSD, each with probability 0.5; without hue."""
    if not cfg.INPUT.COLOR_AUG_SSD:
        return []
    if len(cfg.MODEL.PIXEL_MEAN) != 3:
        raise UserError(
            f"INPUT.COLOR_AUG_SSD is True, but images have {len(cfg.MODEL.PIXEL_MEAN)} channels (MODEL.PIXEL_MEAN), "
            "expected 3 colours: set it to False"
        )
    changes = (T.RandomBrightness(0.875, 1.125), T.RandomContrast(0.5, 1.5), T.RandomSaturation(0.5, 1.5))
    return [T.RandomApply(change, prob=0.5) for change in changes]


class _Resize(T.ResizeTransform):
    """Detectron2's resize, with Pillow for any number of channels and any type, one band at a time.

    Detectron2 uses Pillow only for uint8, and Pillow treats the last of two or four channels as transparency and
    multiplies the others by it. Detectron2 resizes other types with torch, which skips pixels when it shrinks an image.
    """

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        if img.ndim != 3 or (img.dtype == np.uint8 and img.shape[2] in (1, 3)):
            return super().apply_image(img, interp)
        size, method = (self.new_w, self.new_h), self.interp if interp is None else interp
        bands = (Image.fromarray(np.ascontiguousarray(band)) for band in np.moveaxis(img, 2, 0))
        return np.stack([np.asarray(band.resize(size, method)) for band in bands], axis=2)


class _ResizeShortestEdge(T.ResizeShortestEdge):
    """Detectron2's, with sides of at least one pixel: very thin images would become empty."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        sides = self.short_edge_length
        size = int(np.random.randint(sides[0], sides[1] + 1) if self.is_range else np.random.choice(sides))
        if size == 0:
            return T.NoOpTransform()
        new_height, new_width = self.get_output_shape(height, width, size, self.max_size)
        return _Resize(height, width, max(new_height, 1), max(new_width, 1), self.interp)


class _ResizeScale(T.ResizeScale):
    """Detectron2's, with sides of at least one pixel."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        scale = np.random.uniform(self.min_scale, self.max_scale)
        scale *= min(self.target_height / height, self.target_width / width)
        new_height, new_width = (max(round(side * scale), 1) for side in (height, width))
        return _Resize(height, width, new_height, new_width, self.interp)


class _CropPaddedWithMeans(T.FixedSizeCrop):
    """A crop of `side` pixels square; smaller images are padded, each band with its mean."""

    def __init__(self, side: int, means: Sequence[float]) -> None:
        super().__init__((side, side), seg_pad_value=0)
        self.means = np.array(means, np.float32)

    def _get_pad(self, image: np.ndarray) -> T.Transform:
        pad = super()._get_pad(image)
        return _PadWithMeans(pad, self.means)


class _PadWithMeans(T.PadTransform):
    def __init__(self, pad: T.PadTransform, means: np.ndarray) -> None:
        super().__init__(pad.x0, pad.y0, pad.x1, pad.y1, pad.orig_w, pad.orig_h, seg_pad_value=pad.seg_pad_value)
        self.means = means

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        padded = super().apply_image(img)
        means = self.means if img.dtype == np.float32 else self.means.round()
        is_image = super().apply_image(np.ones(img.shape[:2], bool))
        padded[~is_image] = means
        return padded
