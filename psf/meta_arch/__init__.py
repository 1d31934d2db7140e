"""Panoptic SegFormer as a Detectron2 meta-architecture, its construction from a config, and test-time augmentation."""

from psf.meta_arch.classes import (
    StoredMetadata,
    classes_from_config,
    metadata_from_config,
    register_stored_classes,
    store_classes,
)
from psf.meta_arch.panoptic_segformer import PanopticSegFormer, padded_pixels

__all__ = [
    "PanopticSegFormer",
    "StoredMetadata",
    "classes_from_config",
    "metadata_from_config",
    "padded_pixels",
    "register_stored_classes",
    "store_classes",
]
