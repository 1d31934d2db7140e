"""Weights that others trained, under psf's names."""

from psf.checkpoint.pretrained import PretrainedHandler, register_pretrained_handler
from psf.checkpoint.released import convert_released

__all__ = ["PretrainedHandler", "convert_released", "register_pretrained_handler"]

register_pretrained_handler()
