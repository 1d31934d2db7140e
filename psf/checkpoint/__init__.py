"""Weights that others trained, under psf's names."""

from psf.checkpoint.conversion import Conversion, convert_checkpoint
from psf.checkpoint.imagenet import convert_imagenet
from psf.checkpoint.pretrained import PretrainedHandler, register_pretrained_handler
from psf.checkpoint.reading import read_state_dict
from psf.checkpoint.released import convert_released

__all__ = [
    "Conversion",
    "PretrainedHandler",
    "convert_checkpoint",
    "convert_imagenet",
    "convert_released",
    "read_state_dict",
    "register_pretrained_handler",
]

register_pretrained_handler()
