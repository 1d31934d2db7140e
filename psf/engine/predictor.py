"""A trained model as a function of one image."""

from __future__ import annotations

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model

from psf.config import import_user_modules
from psf.data import as_picture, build_augmentations, in_format, limit_pixels, read_image
from psf.engine.checkpointer import build_checkpointer
from psf.engine.num_queries import resolve_num_queries

__all__ = ["Predictor"]


class Predictor(DefaultPredictor):
    """Detectron2's predictor for any number of channels, with psf's resize, which also accepts very thin images.

    As in Detectron2, a call takes (H, W, 3) in BGR order if INPUT.FORMAT is "BGR" or "RGB"; otherwise it takes the
    image that `read` returns.

    Args:
        cfg: MODEL.WEIGHTS has the weights, the first dataset of DATASETS.TEST the metadata. MODEL.PSF.NUM_THING_QUERIES
            -1 is replaced, in place, by the number that the weights were trained with.

    Raises:
        UserError: as the model and `psf.engine.Checkpointer`.
    """

    def __init__(self, cfg: CfgNode) -> None:
        import_user_modules(cfg)  # before build_model: META_ARCHITECTURE may be a user's class
        if (num_queries := resolve_num_queries(cfg)) is not None:
            num_queries.log()
        self.cfg = cfg
        limit_pixels(cfg.INPUT.PSF_MAX_PIXELS)
        self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        self.input_format = cfg.INPUT.FORMAT
        [self.aug] = build_augmentations(cfg, is_train=False)
        self.model = build_model(cfg).eval()
        build_checkpointer(cfg, self.model).load(cfg.MODEL.WEIGHTS)

    def read(self, path: str) -> tuple[np.ndarray, np.ndarray]:
        """Read an image file: the input of a call, and a picture to draw on, (H, W, 3) uint8 in RGB order."""
        if self.input_format in ("BGR", "RGB"):
            image = read_image(path)
            return image, image[..., ::-1]
        image = read_image(path, self.input_format, len(self.cfg.MODEL.PIXEL_MEAN))
        return image, as_picture(image, self.input_format)

    def take_frame(self, image_rgb: np.ndarray) -> np.ndarray:
        """Convert a video frame to the input of a call; a UserError if INPUT.FORMAT is "BANDS"."""
        return in_format(image_rgb, "BGR" if self.input_format == "RGB" else self.input_format)
