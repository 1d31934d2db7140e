"""Backbones beside Detectron2's own."""

from psf.backbone.timm import TimmBackbone, build_psf_timm_backbone

__all__ = ["TimmBackbone", "build_psf_timm_backbone"]
