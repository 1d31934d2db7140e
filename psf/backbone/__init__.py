"""Backbones in addition to Detectron2's own."""

from psf.backbone.swin import SwinBackbone, build_psf_swin_backbone
from psf.backbone.timm import TimmBackbone, build_psf_timm_backbone

__all__ = ["SwinBackbone", "TimmBackbone", "build_psf_swin_backbone", "build_psf_timm_backbone"]
