"""Weights that others trained, under psf's names."""

from psf.checkpoint.pretrained import PretrainedHandler, register_pretrained_handler

__all__ = ["PretrainedHandler", "register_pretrained_handler"]

register_pretrained_handler()
