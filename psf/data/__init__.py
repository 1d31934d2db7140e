"""Images and their panoptic truth: reading, mapping for the model, and the generated shapes data sets."""

from psf.data.dataset_check import check_dataset, load_dataset
from psf.data.images import read_image
from psf.data.mappers import DATASET_MAPPER_REGISTRY, PanopticMapper, build_augmentations, build_mapper
from psf.data.panoptic_json import load_panoptic_json, panoptic_metadata
from psf.data.panoptic_truth import PanopticLabels, compact, read_panoptic_ids, read_panoptic_labels
from psf.data.shapes import register_shapes
from psf.data.shapes_scene import Scene, make_scene

__all__ = [
    "DATASET_MAPPER_REGISTRY",
    "PanopticLabels",
    "PanopticMapper",
    "Scene",
    "build_augmentations",
    "build_mapper",
    "check_dataset",
    "compact",
    "load_dataset",
    "load_panoptic_json",
    "make_scene",
    "panoptic_metadata",
    "read_image",
    "read_panoptic_ids",
    "read_panoptic_labels",
    "register_shapes",
]

register_shapes()
