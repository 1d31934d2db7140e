"""Images and their panoptic truth: reading, mapping for the model, and the generated shapes data sets."""

from psf.data.augmentations import build_augmentations
from psf.data.builtin import register_builtin
from psf.data.dataset_check import check_dataset, load_dataset
from psf.data.images import in_format, read_image
from psf.data.mappers import DATASET_MAPPER_REGISTRY, PanopticMapper, build_mapper
from psf.data.panoptic_format import image_key
from psf.data.panoptic_json import load_panoptic_json, panoptic_metadata, read_categories, read_panoptic_json
from psf.data.panoptic_truth import PanopticLabels, compact, read_panoptic_ids, read_panoptic_labels
from psf.data.pictures import as_picture, read_picture
from psf.data.registration import PanopticSet, register_from_config, register_panoptic
from psf.data.shapes import register_shapes
from psf.data.shapes_scene import Scene, make_scene
from psf.data.test_loader import build_test_loader
from psf.data.thing_count import LargestCount, count_segments, largest_count

__all__ = [
    "DATASET_MAPPER_REGISTRY",
    "LargestCount",
    "PanopticLabels",
    "PanopticMapper",
    "PanopticSet",
    "Scene",
    "as_picture",
    "build_augmentations",
    "build_mapper",
    "build_test_loader",
    "check_dataset",
    "compact",
    "count_segments",
    "image_key",
    "in_format",
    "largest_count",
    "load_dataset",
    "load_panoptic_json",
    "make_scene",
    "panoptic_metadata",
    "read_categories",
    "read_image",
    "read_panoptic_ids",
    "read_panoptic_json",
    "read_panoptic_labels",
    "read_picture",
    "register_builtin",
    "register_from_config",
    "register_panoptic",
    "register_shapes",
]

register_builtin()
register_shapes()
