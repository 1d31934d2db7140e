"""A trained model as a function of one image."""

from __future__ import annotations

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model

from psf.config import import_user_modules
from psf.data import as_picture, build_augmentations, in_format, read_image
from psf.engine.checkpointer import build_checkpointer
from psf.engine.num_queries import resolve_num_queries

__all__ = ["Predictor"]


class Predictor(DefaultPredictor):
    """Detectron2's, for images of any channels, with psf's resize, which keeps the longest and thinnest images.

    As there, a call takes (H, W, 3) in BGR order where INPUT.FORMAT is "BGR" or "RGB"; else what `read` gives.

    Args:
        cfg: with the weights of MODEL.WEIGHTS; metadata are those of the first of DATASETS.TEST. MODEL.PSF.
            NUM_THING_QUERIES -1 is replaced in it by the number that the weights were trained with.

    Raises:
        UserError: as the model and `psf.engine.Checkpointer`.
    """

    def __init__(self, cfg: CfgNode) -> None:
        import_user_modules(cfg)  # before build_model, whose META_ARCHITECTURE may be the user's
        if (num_queries := resolve_num_queries(cfg)) is not None:
            num_queries.log()
        self.cfg = cfg
        self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        self.input_format = cfg.INPUT.FORMAT
        [self.aug] = build_augmentations(cfg, is_train=False)
        self.model = build_model(cfg).eval()
        build_checkpointer(cfg, self.model).load(cfg.MODEL.WEIGHTS)

    def read(self, path: str) -> tuple[np.ndarray, np.ndarray]:
        """An image file as a call takes it, and as a picture to draw on, (H, W, 3) uint8 in RGB order."""
        if self.input_format in ("BGR", "RGB"):
            image = read_image(path)
            return image, image[..., ::-1]
        image = read_image(path, self.input_format, len(self.cfg.MODEL.PIXEL_MEAN))
        return image, as_picture(image, self.input_format)

    def take_frame(self, image_rgb: np.ndarray) -> np.ndarray:
        """A video's picture as a call takes it; a UserError of models for "BANDS"."""
        return in_format(image_rgb, "BGR" if self.input_format == "RGB" else self.input_format)
