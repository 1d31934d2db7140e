"""Panoptic SegFormer as a Detectron2 meta-architecture, its construction from a config, and test-time augmentation."""

from psf.meta_arch.build import classes_from_config
from psf.meta_arch.panoptic_segformer import PanopticSegFormer, padded_pixels

__all__ = ["PanopticSegFormer", "classes_from_config", "padded_pixels"]
