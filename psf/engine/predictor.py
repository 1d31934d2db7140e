"""A trained model as a function of one image, as Detectron2 has it; `psf.Predictor` is made of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from torch import nn

from psf.config import import_user_modules
from psf.data import as_picture, build_augmentations, in_format, limit_pixels, read_image
from psf.engine.checkpointer import build_checkpointer
from psf.engine.config.checks import check_config, check_device
from psf.engine.config.num_queries import resolve_num_queries
from psf.errors import UserError
from psf.meta_arch import metadata_from_config, register_stored_classes
from psf.meta_arch.test_time_augmentation import PanopticSegFormerWithTTA

__all__ = ["Predictor"]


class Predictor(DefaultPredictor):
    """Detectron2's predictor for any number of channels, with psf's resize, which also accepts very thin images.

    With TEST.AUG.ENABLED, a result comes from all views of the image, as in evaluation.

    As in Detectron2, a call takes (H, W, 3) in BGR order if INPUT.FORMAT is "BGR" or "RGB"; otherwise it takes the
    image that `read` returns.

    Args:
        cfg: MODEL.WEIGHTS has the weights, the first dataset of DATASETS.TEST the metadata; MODEL.PSF.CLASSES has those
            of a dataset that is not registered here. MODEL.PSF.NUM_THING_QUERIES -1 is replaced, in place, by the
            number that the weights were trained with.
        checkpoint: the content of MODEL.WEIGHTS, if it has been read already.

    Raises:
        UserError: as `check_config`, the model and `psf.engine.Checkpointer`; if torch has no such device.
    """

    def __init__(self, cfg: CfgNode, checkpoint: dict[str, Any] | None = None) -> None:
        import_user_modules(cfg)  # before build_model: META_ARCHITECTURE may be a user's class
        check_config(cfg)
        check_device(cfg.MODEL.DEVICE, "MODEL.DEVICE", must_exist=True)
        register_stored_classes(cfg)
        metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0]) if cfg.DATASETS.TEST else metadata_from_config(cfg)
        if metadata is None:
            raise UserError("DATASETS.TEST is empty: the names of the classes come from its first dataset")
        if (num_queries := resolve_num_queries(cfg)) is not None:
            num_queries.log()
        self.cfg = cfg
        limit_pixels(cfg.INPUT.PSF_MAX_PIXELS)
        self.metadata = metadata
        self.input_format = cfg.INPUT.FORMAT
        [self.aug] = build_augmentations(cfg, is_train=False)
        self.model = build_model(cfg).eval()
        self._views: PanopticSegFormerWithTTA | None = None
        if cfg.TEST.AUG.ENABLED:
            self._views = PanopticSegFormerWithTTA(cfg, self.model)
            views = cfg.clone()
            views.defrost()
            views.INPUT.MIN_SIZE_TEST, views.INPUT.MAX_SIZE_TEST = max(cfg.TEST.AUG.MIN_SIZES), cfg.TEST.AUG.MAX_SIZE
            [self.aug] = build_augmentations(views, is_train=False)
        build_checkpointer(cfg, self.model).load(cfg.MODEL.WEIGHTS, content=checkpoint)

    @property
    def network(self) -> nn.Module:
        """What runs on an image: the model, or with TEST.AUG.ENABLED the model on all views."""
        return self._views or self.model

    def __call__(self, original_image: np.ndarray) -> dict[str, Any]:
        """Segment one image; a UserError as `prepare`."""
        with torch.no_grad():
            [result] = self.network([self.prepare(original_image)])
        predictions: dict[str, Any] = result
        return predictions

    def prepare(self, original_image: np.ndarray) -> dict[str, Any]:
        """Check and resize an image: Detectron2's dict of it, the input of the model.

        Raises:
            UserError: if it is not an array (H, W, C) with the model's number of channels and at least one pixel, or
                the resize makes more than INPUT.PSF_MAX_PIXELS of it.
        """
        num_channels = len(self.cfg.MODEL.PIXEL_MEAN)
        if original_image is None:
            raise UserError("the image is None, as cv2.imread returns it for a file that it cannot read")
        if not isinstance(original_image, np.ndarray) or original_image.dtype.kind not in "uif":
            kind = getattr(original_image, "dtype", type(original_image).__name__)
            raise UserError(f"the image is of type {kind}: expected a NumPy array of numbers")
        shape = original_image.shape
        if len(shape) != 3 or shape[2] != num_channels or 0 in shape:
            hint = "; cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) makes color of gray" if len(shape) == 2 else ""
            raise UserError(
                f"the image has the shape {shape}: expected (height, width, {num_channels}), as the model has "
                f"{num_channels} channels (MODEL.PIXEL_MEAN){hint if num_channels == 3 else ''}"
            )
        image = original_image[..., ::-1] if self.input_format == "RGB" else original_image
        transform = self.aug.get_transform(image)
        self._check_resized(transform, shape)
        resized = transform.apply_image(image)
        tensor = torch.as_tensor(resized.astype("float32").transpose(2, 0, 1))  # (H, W, C) -> (C, H, W)
        return {"image": tensor, "height": shape[0], "width": shape[1]}

    def _check_resized(self, transform: Any, shape: tuple[int, ...]) -> None:
        limit, sides = self.cfg.INPUT.PSF_MAX_PIXELS, (getattr(transform, "new_h", 0), getattr(transform, "new_w", 0))
        if sides[0] * sides[1] > max(limit, shape[0] * shape[1]):
            keys = "TEST.AUG.MIN_SIZES and MAX_SIZE" if self._views else "INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST"
            raise UserError(
                f"the image of {shape[1]} x {shape[0]} pixels would be resized to {sides[1]} x {sides[0]}, more than "
                f"INPUT.PSF_MAX_PIXELS, {limit}: lower {keys}"
            )

    def read(self, path: str, data: bytes | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Read an image file: the input of a call, and a picture to draw on, (H, W, 3) uint8 in RGB order.

        Args:
            path: of the file.
            data: its content, if it is in memory; `path` is then only its name in messages.
        """
        if self.input_format in ("BGR", "RGB"):
            image = read_image(path, data=data)
            return image, image[..., ::-1]
        image = read_image(path, self.input_format, len(self.cfg.MODEL.PIXEL_MEAN), data)
        return image, as_picture(image, self.input_format)

    def take_frame(self, image_rgb: np.ndarray) -> np.ndarray:
        """Convert a video frame to the input of a call; a UserError if INPUT.FORMAT is "BANDS"."""
        return in_format(image_rgb, "BGR" if self.input_format == "RGB" else self.input_format)
