"""Locations of things as the losses need them: boxes, or centres of mass, in units of the unpadded image."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_convert

from psf.predictions import PanopticTargets

__all__ = ["image_scale", "target_locations"]


def image_scale(target: PanopticTargets) -> Tensor:
    """(4,) width, height, width, height of the unpadded image, in pixels."""
    height, width = target.image_size
    return target.thing_boxes_xyxy_px.new_tensor([width, height, width, height])


def target_locations(target: PanopticTargets, location_dim: int) -> Tensor:
    """What the auxiliary head should say of each thing.

    Returns:
        (G, 4) boxes_cxcywh_norm for `location_dim` 4, (G, 2) the masks' centres of mass for 2; in [0, 1].
    """
    if location_dim == 2:
        return _mass_centres(target.thing_masks) / image_scale(target)[:2]
    return box_convert(target.thing_boxes_xyxy_px, "xyxy", "cxcywh") / image_scale(target)


def _mass_centres(masks: Tensor) -> Tensor:
    """(G, H, W) bool -> (G, 2) x and y of the mean pixel centre, in pixels."""
    columns, rows = masks.sum(1).float(), masks.sum(2).float()  # pixels per column, per row
    x = torch.arange(columns.shape[1], device=masks.device) + 0.5
    y = torch.arange(rows.shape[1], device=masks.device) + 0.5
    area = columns.sum(1).clamp(min=1)
    return torch.stack(((columns * x).sum(1) / area, (rows * y).sum(1) / area), dim=-1)
