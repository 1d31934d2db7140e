"""Write, read, convert and re-map checkpoints."""

from psf.checkpoint.class_remapping import (
    ClassChanges,
    adapt_input_channels,
    adapt_query_count,
    adapted_weight,
    changes_table,
    compare_classes,
    query_count_entry,
    remap_classes,
    stored_query_count,
)
from psf.checkpoint.conversion import Conversion, convert_checkpoint, shapes_of_model
from psf.checkpoint.entries import ClassNames, ModelEntry, TunedMerging, check_same_classes, class_names_from_config
from psf.checkpoint.imagenet import convert_imagenet
from psf.checkpoint.loading import arrange_weights, kind_of_weights
from psf.checkpoint.pretrained import PretrainedHandler, register_pretrained_handler
from psf.checkpoint.reading import read_checkpoint, read_state_dict
from psf.checkpoint.released import convert_released
from psf.checkpoint.saving import (
    find_damage,
    has_checksum,
    newest_sound_checkpoint,
    non_finite_names,
    write_checkpoint,
)

__all__ = [
    "ClassChanges",
    "ClassNames",
    "Conversion",
    "ModelEntry",
    "PretrainedHandler",
    "TunedMerging",
    "adapt_input_channels",
    "adapt_query_count",
    "adapted_weight",
    "arrange_weights",
    "changes_table",
    "check_same_classes",
    "class_names_from_config",
    "compare_classes",
    "convert_checkpoint",
    "convert_imagenet",
    "convert_released",
    "find_damage",
    "has_checksum",
    "kind_of_weights",
    "newest_sound_checkpoint",
    "non_finite_names",
    "query_count_entry",
    "read_checkpoint",
    "read_state_dict",
    "register_pretrained_handler",
    "remap_classes",
    "shapes_of_model",
    "stored_query_count",
    "write_checkpoint",
]

register_pretrained_handler()
