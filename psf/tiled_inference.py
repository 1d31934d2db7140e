"""Results of large images, tile by tile, at full resolution (MODEL.PSF.TEST.TILES)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.structures import ImageList

from psf.inference import Frame, ScoredTile, Tile, fuse_tiles, tile_grid
from psf.post_processing import PostProcessor
from psf.predictions import Candidates

__all__ = ["TileSettings", "tile_settings", "tiled_candidates"]

MIN_SIDE = 64  # of tiles: less is no view of anything


class TileSettings(NamedTuple):
    """MODEL.PSF.TEST.TILES."""

    side: int = 0  # in pixels of the model's input; 0: images are not cut up
    overlap: float = 0.25  # least share of a tile's side that neighbours have in common


def tile_settings(cfg: CfgNode) -> TileSettings:
    """The config's.

    Raises:
        ValueError: if SIZE is neither 0 nor at least 64, or OVERLAP not between 0 and 1.
    """
    node = cfg.MODEL.PSF.TEST.TILES
    if node.SIZE != 0 and node.SIZE < MIN_SIDE:
        raise ValueError(f"MODEL.PSF.TEST.TILES.SIZE is {node.SIZE}: expected {MIN_SIDE} pixels or more, or 0 for none")
    if not 0 < node.OVERLAP < 1:
        raise ValueError(
            f"MODEL.PSF.TEST.TILES.OVERLAP is {node.OVERLAP}: expected a share between 0 and 1; what lies across tiles "
            "without an overlap cannot be joined"
        )
    return TileSettings(node.SIZE, node.OVERLAP)


def tiled_candidates(
    x: dict[str, Any],
    settings: TileSettings,
    processor: PostProcessor,
    preprocess: Callable[[list[dict[str, Any]]], ImageList],
    candidates_of: Callable[[ImageList], Candidates],
    *,
    stride: int,
    is_fixed: bool,
) -> tuple[Candidates, Frame]:
    """Candidates of one image out of those of its tiles, and the sizes that their masks have.

    Args:
        x: Detectron2's dict of the image.
        settings: of the tiles.
        processor: says how much candidates are to be believed.
        preprocess: the model's.
        candidates_of: the candidates of a batch of one image.
        stride: of the masks.
        is_fixed: see `psf.inference.fuse_tiles`.
    """
    size = (x["image"].shape[1], x["image"].shape[2])
    tiles = []
    for tile in tile_grid(size, settings.side, settings.overlap, stride):
        images = preprocess([{**x, "image": x["image"][:, tile.top : tile.bottom, tile.left : tile.right]}])
        candidates = _in_image(candidates_of(images), tile, size, stride)
        tiles.append(_score(candidates, tile // stride, processor))
    grid = (-(-size[0] // stride), -(-size[1] // stride))
    output_size = (x.get("height", size[0]), x.get("width", size[1]))
    frame = Frame((grid[0] * stride, grid[1] * stride), size, output_size)
    return fuse_tiles(tiles, grid, is_fixed=is_fixed, num_best=processor.instance.max_per_image), frame


def _in_image(candidates: Candidates, tile: Tile, size: tuple[int, int], stride: int) -> Candidates:
    """A tile's candidates without its padding, their boxes as those of the whole image."""
    top, bottom, left, right = tile // stride
    boxes = candidates.boxes_cxcywh_norm
    if boxes is not None:
        height, width = size
        scale = boxes.new_tensor([tile.right - tile.left, tile.bottom - tile.top] * 2)
        corner = boxes.new_tensor([tile.left, tile.top, 0, 0])
        boxes = (boxes * scale + corner) / boxes.new_tensor([width, height] * 2)
    masks = candidates.mask_scores[:, : bottom - top, : right - left]
    return candidates._replace(mask_scores=masks, boxes_cxcywh_norm=boxes)


def _score(candidates: Candidates, tile: Tile, processor: PostProcessor) -> ScoredTile:
    size = (candidates.mask_scores.shape[1], candidates.mask_scores.shape[2])
    scored = processor.score(candidates, torch.ones_like(candidates.is_thing), Frame(size, size, size)).masks
    is_kept = processor.is_kept(candidates, scored.confidence)
    return ScoredTile(candidates, scored.confidence, scored.masks, is_kept, tile)
