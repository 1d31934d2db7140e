"""Test-time augmentation: results from several views of each image, flipped and scaled (TEST.AUG)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from psf.errors import UserError
from psf.inference import ImageGeometry, ScoredView, fuse_views, on_common_grid
from psf.meta_arch.panoptic_segformer import PanopticSegFormer, padded_pixels
from psf.structures import Candidates

__all__ = ["PanopticSegFormerWithTTA"]

Size = tuple[int, int]


class PanopticSegFormerWithTTA(nn.Module):
    """Runs the model on each view of an image, and fuses the candidates of the views before merging.

    Panoptic map, instances and semantic scores then come from one set of candidates, as without views. A view
    contributes its stuff classes and at most TEST.DETECTIONS_PER_IMAGE things.

    Args:
        model: the model, as trained.
        min_sizes: short sides of the views in pixels (TEST.AUG.MIN_SIZES).
        max_size: upper limit of their long sides in pixels (TEST.AUG.MAX_SIZE).
        flip: also run the flipped image at each size (TEST.AUG.FLIP).

    Raises:
        UserError: if a size is missing or not positive, or the model has joint queries or uses tiles.
    """

    @configurable
    def __init__(self, model: PanopticSegFormer, *, min_sizes: tuple[int, ...], max_size: int, flip: bool):
        super().__init__()
        if not min_sizes or min(*min_sizes, max_size) < 1:
            raise UserError(
                f"TEST.AUG.MIN_SIZES is {tuple(min_sizes)}, TEST.AUG.MAX_SIZE is {max_size}: expected short sides of "
                "the views, and a maximum for the long sides, in pixels"
            )
        if model.has_joint_queries:
            raise UserError(
                'MODEL.PSF.QUERIES is "joint": a stuff class without its own query cannot be averaged over '
                'views; set QUERIES to "decoupled", or TEST.AUG.ENABLED to False'
            )
        if model.has_tiles:
            raise UserError(
                "TEST.AUG.ENABLED is True and MODEL.PSF.TEST.TILES.SIZE is not 0: views are not cut into tiles; set "
                "ENABLED to False, or SIZE to 0"
            )
        self.model, self.min_sizes, self.max_size, self.flip = model, tuple(min_sizes), max_size, flip

    @classmethod
    def from_config(cls, cfg: CfgNode, model: PanopticSegFormer) -> dict[str, Any]:
        node = cfg.TEST.AUG
        return {"model": model, "min_sizes": node.MIN_SIZES, "max_size": node.MAX_SIZE, "flip": node.FLIP}

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """As the model at test. `image` should be as large as the largest view, as all views are made from it."""
        return [self.model.result(*one) for one in self.candidates_by_image(batched_inputs)]

    def candidates_by_image(self, batched_inputs: list[dict[str, Any]]) -> Iterator[tuple[Candidates, ImageGeometry]]:
        """The candidates of each image, fused from its views, and the sizes of their masks."""
        yield from map(self._fused, batched_inputs)

    def _fused(self, x: dict[str, Any]) -> tuple[Candidates, ImageGeometry]:
        own_size = (x["image"].shape[1], x["image"].shape[2])
        sizes = [view_size(own_size, short, self.max_size) for short in self.min_sizes]
        grid = tuple(-(-max(sides) // self.model.mask_stride) for sides in zip(*sizes, strict=True))
        views = []
        for size in sizes:
            image = resize_image(x["image"], size)
            flips = (False, True) if self.flip else (False,)
            images = self.model.preprocess([{**x, "image": image.flip(2) if is_flip else image} for is_flip in flips])
            geometry = ImageGeometry((images.tensor.shape[-2], images.tensor.shape[-1]), size, grid)
            by_flip = self.model.candidates(images.tensor, padded_pixels(images))
            for candidates, is_flip in zip(by_flip, flips, strict=True):
                views.append(self._score(on_common_grid(candidates, geometry, is_flip)))
        output_size = (x.get("height", own_size[0]), x.get("width", own_size[1]))
        return fuse_views(views), ImageGeometry(grid, grid, output_size)

    def _score(self, candidates: Candidates) -> ScoredView:
        """The most confident things and all stuff classes of a view."""
        processor = self.model.post_processor
        grid = (candidates.mask_scores.shape[1], candidates.mask_scores.shape[2])
        scored = processor.score(candidates, None, ImageGeometry(grid, grid, grid)).masks
        things = scored.confidence.masked_fill(~candidates.is_thing, -1.0)
        best = things.argsort(descending=True, stable=True)[: processor.instance.max_per_image]
        is_chosen = ~candidates.is_thing | (
            torch.zeros_like(things, dtype=torch.bool).index_fill(0, best, True) & (scored.area > 0)
        )
        rows = is_chosen.nonzero()[:, 0]  # once for all selections, as the host waits for the number of rows
        return ScoredView(candidates.select(rows), scored.confidence[rows], scored.masks[rows])


def view_size(size: Size, short_side: int, max_size: int) -> Size:
    """Height and width with this short side, or with the long side `max_size` if that is smaller; at least 1."""
    factor = min(short_side / min(size), max_size / max(size))
    return max(round(size[0] * factor), 1), max(round(size[1] * factor), 1)


def resize_image(image: Tensor, size: Size) -> Tensor:
    """(C, H, W) of any type -> (C, *size), bilinear and antialiased, in float32; unchanged if it has this size."""
    if tuple(image.shape[1:]) == size:
        return image
    return F.interpolate(image[None].float(), size, mode="bilinear", align_corners=False, antialias=True)[0]
