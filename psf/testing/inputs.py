"""Configs of a small model, and the random numbers that its parts receive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.config import CfgNode, get_cfg
from torch import Tensor

from psf.config import add_psf_config
from psf.model_zoo import get_config_file
from psf.modeling.position_encoding import resize_padding_mask, valid_ratio
from psf.structures import FeatureTokens

__all__ = ["Call", "configs_to_check", "level_masks", "level_shapes", "make_features", "make_maps", "small_config"]

PADDED_SIZE = (64, 96)  # height and width in pixels
OTHER_SIZE = (72, 56)  # not divisible by the strides
IMAGE_SIZES = ((64, 96), (24, 80), (64, 56))  # only the first fills PADDED_SIZE
FINEST_STRIDE = 8
OWN_DATA = "small/psf_small.yaml"  # the config for users' own data
NUM_QUERIES = 5


def small_config(config_file: str = "") -> CfgNode:
    """A config with 32 channels and two layers everywhere: quick to build and to run.

    Args:
        config_file: a config that comes with psf, such as "small/psf_small.yaml"; "": psf's defaults (paper recipe).
    """
    cfg = get_cfg()
    add_psf_config(cfg)
    if config_file:
        cfg.merge_from_file(get_config_file(config_file))
    node = cfg.MODEL.PSF
    node.HIDDEN_DIM, node.NUM_HEADS, node.NUM_THING_QUERIES = 32, 4, NUM_QUERIES
    for part in (node.PIXEL_ENCODER, node.LOCATION_DECODER):
        part.NUM_LAYERS = 2
    for part in (node.PIXEL_ENCODER, node.LOCATION_DECODER, node.MASK_DECODER):
        part.FEEDFORWARD_DIM = 64
    node.MASK_DECODER.NUM_THING_LAYERS = node.MASK_DECODER.NUM_STUFF_LAYERS = 2
    return cfg


def configs_to_check(cfg: CfgNode | None) -> dict[str, CfgNode]:
    """By name, for messages: the given config; None: psf's defaults and the config for users' own data."""
    if cfg is None:
        return {"psf's defaults": small_config(), f"the keys of configs/{OWN_DATA}": small_config(OWN_DATA)}
    cfg = cfg.clone()
    cfg.defrost()
    if cfg.MODEL.PSF.NUM_THING_QUERIES == -1:  # counted in the training images, but here are none
        cfg.MODEL.PSF.NUM_THING_QUERIES = NUM_QUERIES
    return {"the given config": cfg}


class Call(NamedTuple):
    """What differs between two calls of a part."""

    images: Sequence[int] = (0, 1, 2)  # of IMAGE_SIZES
    size: tuple[int, int] = PADDED_SIZE
    has_mask: bool = True  # whether there is a padding_mask
    noise: int = 0  # seed of the values in padding
    num_queries: int = NUM_QUERIES  # of a mask decoder
    layer: int | None = None  # of a mask decoder
    repeats_query_pos: bool = False  # a mask decoder's query_pos is the same for all images, (B, N, D), not (N, D)

    def __str__(self) -> str:
        height, width = self.size
        layer = "" if self.layer is None else f", `layer` {self.layer}"
        return f"{len(self.images)} images padded to {height} x {width} pixels{layer}"

    def padding_mask(self) -> Tensor:
        """(B, H, W) bool of the image batch."""
        mask = torch.ones(len(self.images), *self.size, dtype=torch.bool)
        for image, one in zip(self.images, mask, strict=True):
            height, width = IMAGE_SIZES[image]
            one[:height, :width] = False
        return mask


def level_shapes(num_levels: int, size: tuple[int, int], stride: int = FINEST_STRIDE) -> list[tuple[int, int]]:
    """(h, w) of each level for images of this padded size; each stride is twice the previous stride."""
    strides = [stride * 2**level for level in range(num_levels)]
    return [(-(-size[0] // s), -(-size[1] // s)) for s in strides]


def level_masks(call: Call, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """(B, h, w) bool of each level."""
    mask = call.padding_mask()
    return [resize_padding_mask(mask, torch.empty(len(mask), 0, *shape)) for shape in shapes]


def make_maps(call: Call, shapes: Sequence[tuple[int, int]], num_channels: int, seed: int = 0) -> list[Tensor]:
    """Random maps (B, C, h, w); `call.noise` seeds the values in padding."""
    maps = []
    for shape, mask in zip(shapes, level_masks(call, shapes), strict=True):
        own, padding = (
            torch.randn(len(IMAGE_SIZES), num_channels, *shape, generator=torch.Generator().manual_seed(s))
            for s in (seed, 100 + call.noise)
        )
        maps.append(torch.where(mask[:, None], 5 * padding[list(call.images)], own[list(call.images)]))
    return maps


def make_features(call: Call, shapes: Sequence[tuple[int, int]], num_channels: int) -> FeatureTokens:
    """Random tokens of these levels."""
    masks = level_masks(call, shapes)
    tokens, pos_embed = (
        torch.cat([x.flatten(2).transpose(1, 2) for x in make_maps(call, shapes, num_channels, seed)], dim=1)
        for seed in (1, 2)
    )
    padding_mask = torch.cat([mask.flatten(1) for mask in masks], dim=1) if call.has_mask else None
    ratios = torch.stack([valid_ratio(mask) for mask in masks], dim=1)
    return FeatureTokens(tokens, pos_embed, list(shapes), padding_mask, ratios)
