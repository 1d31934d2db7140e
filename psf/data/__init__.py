"""Images and their panoptic ground truth: reading, mapping for the model, and the generated shapes datasets."""

from psf.data.augmentations import build_augmentations
from psf.data.builtin import register_builtin
from psf.data.dataset_check import LargestCount, check_dataset, count_segments, largest_count, load_dataset
from psf.data.images import as_picture, image_suffixes, in_format, limit_pixels, read_image, read_picture
from psf.data.loaders import (
    RandomState,
    TrainingLoader,
    build_test_loader,
    build_train_loader,
    check_sampler,
    join_datasets,
    repeat_factors,
    spread_evenly,
    unchanged_random_state,
    without_empty_images,
)
from psf.data.mappers import DATASET_MAPPER_REGISTRY, PanopticMapper, build_mapper
from psf.data.panoptic_format import distinct_names, image_key
from psf.data.panoptic_json import load_panoptic_json, panoptic_metadata, read_categories, read_panoptic_json
from psf.data.panoptic_labels import PanopticLabels, compact, read_panoptic_ids, read_panoptic_labels
from psf.data.registration import PanopticSet, register_from_config, register_panoptic

__all__ = [
    "DATASET_MAPPER_REGISTRY",
    "LargestCount",
    "PanopticLabels",
    "PanopticMapper",
    "PanopticSet",
    "RandomState",
    "TrainingLoader",
    "as_picture",
    "build_augmentations",
    "build_mapper",
    "build_test_loader",
    "build_train_loader",
    "check_dataset",
    "check_sampler",
    "compact",
    "count_segments",
    "distinct_names",
    "image_key",
    "image_suffixes",
    "in_format",
    "join_datasets",
    "largest_count",
    "limit_pixels",
    "load_dataset",
    "load_panoptic_json",
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
    "repeat_factors",
    "spread_evenly",
    "unchanged_random_state",
    "without_empty_images",
]

from psf.data.shapes import register_shapes

register_builtin()
register_shapes()
