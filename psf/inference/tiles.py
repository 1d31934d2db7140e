"""Tiled inference: candidates of overlapping tiles, fused to candidates of the image (MODEL.PSF.TEST.TILES)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from psf.inference.candidates import ImageGeometry, join_candidates
from psf.inference.post_processor import PostProcessor
from psf.ops.precision import shared_pixels
from psf.ops.transfer import download_arrays, upload_numbers
from psf.structures import Candidates

__all__ = [
    "ScoredTile",
    "Tile",
    "TileSettings",
    "fuse_tiles",
    "tile_grid",
    "tiled_candidates",
]

Images = TypeVar("Images")  # a preprocessed batch
# Candidates of one class in two tiles are the same thing if their mask IoU in the overlap of the tiles exceeds this.
SAME_THING = 0.4
Part = tuple[int, int]  # number of a tile, position among its candidates


class Tile(NamedTuple):
    """A part of an image or of its mask grid: rows top..bottom and columns left..right, the ends exclusive."""

    top: int
    bottom: int
    left: int
    right: int

    def __floordiv__(self, stride: int) -> Tile:
        """The tile in cells of a grid, including cells that it covers only in part."""
        return Tile(self.top // stride, -(-self.bottom // stride), self.left // stride, -(-self.right // stride))

    def __and__(self, other: Tile) -> Tile:
        """The intersection of two tiles, see `is_empty`."""
        return Tile(
            max(self.top, other.top),
            min(self.bottom, other.bottom),
            max(self.left, other.left),
            min(self.right, other.right),
        )

    @property
    def is_empty(self) -> bool:
        return self.bottom <= self.top or self.right <= self.left

    def slices_in(self, outer: Tile) -> tuple[slice, slice]:
        """Rows and columns of this tile in an array of the size of `outer`."""
        return (
            slice(self.top - outer.top, self.bottom - outer.top),
            slice(self.left - outer.left, self.right - outer.left),
        )


class ScoredTile(NamedTuple):
    """Candidates of one tile, with their confidence, and masks at the tile's size on the grid."""

    candidates: Candidates
    confidence: Tensor  # (N,)
    masks: Tensor  # (N, h, w) bool
    is_kept: Tensor  # (N,) bool, whether merging would keep it if the tile were an image
    tile: Tile  # on the grid

    def select(self, rows: Tensor) -> ScoredTile:
        """Select candidates by `rows`, indices or (N,) bool."""
        return ScoredTile(
            self.candidates.select(rows), self.confidence[rows], self.masks[rows], self.is_kept[rows], self.tile
        )


class TileNumbers(NamedTuple):
    """(N,) copies on the host of the numbers of a tile's candidates."""

    confidence: np.ndarray
    class_indices: np.ndarray
    is_thing: np.ndarray
    is_kept: np.ndarray

    def select(self, rows: np.ndarray) -> TileNumbers:
        """Select candidates by `rows`, (N,) bool."""
        return TileNumbers(*(x[rows] for x in self))


class TileSettings(NamedTuple):
    """MODEL.PSF.TEST.TILES."""

    side: int = 0  # side of a tile, in pixels of the model's input; 0: no tiles
    overlap: float = 0.25  # least share of a tile's side that neighbors have in common


def tile_grid(size: tuple[int, int], side: int, overlap: float, step: int) -> list[Tile]:
    """The tiles of an image: the fewest that cover it, evenly spread, row by row.

    Args:
        size: height and width of the image in pixels.
        side: side of a tile in pixels; tiles at the right or lower border may be longer by less than `step`.
        overlap: least share of `side` that neighbors have in common.
        step: tiles begin at multiples of it, so that their masks lie on one grid.
    """
    rows, columns = (_spans(length, side, overlap, step) for length in size)
    return [Tile(top, bottom, left, right) for top, bottom in rows for left, right in columns]


def _spans(length: int, side: int, overlap: float, step: int) -> list[tuple[int, int]]:
    if length < side + step:
        return [(0, length)]
    last = (length - side) // step * step  # start of the last span
    stride = max(int(side * (1 - overlap)) // step * step, step)
    number = -(-last // stride)
    starts = [last * i // number // step * step for i in range(number + 1)]
    return [(start, start + side) for start in starts[:-1]] + [(last, length)]


def fuse_tiles(tiles: Sequence[ScoredTile], grid: tuple[int, int], *, is_fixed: bool, num_best: int) -> Candidates:
    """Fuse the candidates of tiles to one candidate per thing and one per stuff class.

    Parts of things are joined across tiles: two parts of one class are joined if their mask IoU in the overlap of the
    tiles exceeds `SAME_THING`, in order of this IoU, unless that would join two things of one tile. Their masks are
    averaged where tiles overlap; the weight of a tile's mask grows with the distance from its border. The probability
    is the highest of the parts. Most candidates of a tile are not things: a thing is kept if its tile would keep one of
    its parts, or if it is among the `num_best` things with the most confident parts.

    A stuff class has the same query in every tile, and its masks are joined in the same way. In a tile where merging
    would not keep the class, the mask is weighted by the ratio of the class's probability there to its highest
    probability: masks of absent classes mean nothing.

    Args:
        tiles: at least one; together they cover the grid. Boxes refer to the whole image.
        grid: height and width of the fused masks.
        is_fixed: stuff classes have fixed queries, in the same order in all tiles; else (joint queries) they are
            joined as things are.
        num_best: number of things that are kept whatever their confidence.
    """
    numbers = _copy_numbers(tiles)
    is_part = [one.is_thing if is_fixed else np.ones_like(one.is_thing) for one in numbers]
    parts, part_numbers = _select(tiles, numbers, is_part)
    groups = [
        group
        for rank, group in enumerate(_groups(parts, part_numbers))
        if rank < num_best or any(part_numbers[number].is_kept[i] for number, i in group)
    ]
    joined = _join(parts, part_numbers, groups, grid)
    if not is_fixed:
        return joined
    stuff, stuff_numbers = _select(tiles, numbers, [~rows for rows in is_part])
    num_stuff = len(stuff_numbers[0].confidence)
    everywhere = [[(number, row) for number in range(len(stuff))] for row in range(num_stuff)]
    return join_candidates(joined, _join(stuff, stuff_numbers, everywhere, grid)._replace(boxes_cxcywh_norm=None))


def _copy_numbers(tiles: Sequence[ScoredTile]) -> list[TileNumbers]:
    """The numbers of all tiles, in one transfer."""
    fields = [(x.confidence, x.candidates.class_indices, x.candidates.is_thing, x.is_kept) for x in tiles]
    copies = iter(download_arrays(*(x for tile in fields for x in tile)))
    return [TileNumbers(*one) for one in zip(*[copies] * len(TileNumbers._fields), strict=True)]


def _select(
    tiles: Sequence[ScoredTile], numbers: Sequence[TileNumbers], rows: Sequence[np.ndarray]
) -> tuple[list[ScoredTile], list[TileNumbers]]:
    """The candidates of each tile at `rows`, (N,) bool on the host."""
    chosen = [
        tile.select(upload_numbers(np.flatnonzero(one), tile.masks.device, torch.long))
        for tile, one in zip(tiles, rows, strict=True)
    ]
    return chosen, [own.select(one) for own, one in zip(numbers, rows, strict=True)]


def _groups(tiles: Sequence[ScoredTile], numbers: Sequence[TileNumbers]) -> list[list[Part]]:
    """Groups of parts that form one thing, the most confident group first; each part is in one group."""
    group_of = {(number, i): [(number, i)] for number, tile in enumerate(tiles) for i in range(len(tile.confidence))}
    for one, other in _links(tiles, numbers):
        first, second = group_of[one], group_of[other]
        if {number for number, _ in first}.isdisjoint(number for number, _ in second):
            first += second
            for part in second:
                group_of[part] = first
    groups = {id(group): group for group in group_of.values()}.values()
    confidence = [one.confidence.tolist() for one in numbers]
    return sorted(groups, key=lambda group: -max(confidence[number][i] for number, i in group))


def _links(tiles: Sequence[ScoredTile], numbers: Sequence[TileNumbers]) -> list[tuple[Part, Part]]:
    """Pairs of parts in two tiles whose masks match in the overlap, in order of their IoU."""
    pairs: list[tuple[int, int]] = []
    ious_of_pairs: list[Tensor] = []
    for a, one in enumerate(tiles):
        for b, other in enumerate(tiles[:a]):
            shared = one.tile & other.tile
            if shared.is_empty:
                continue
            masks, others = (x.masks[(slice(None), *shared.slices_in(x.tile))].flatten(1) for x in (one, other))
            pairs.append((a, b))
            ious_of_pairs.append(_ious(masks, others))
    found: list[tuple[float, Part, Part]] = []
    for (a, b), ious in zip(pairs, download_arrays(*ious_of_pairs) if pairs else (), strict=True):
        is_alike = ious > SAME_THING
        is_alike &= numbers[a].class_indices[:, None] == numbers[b].class_indices[None]
        is_alike &= numbers[a].is_thing[:, None] == numbers[b].is_thing[None]
        rows, columns = np.nonzero(is_alike)
        for iou, i, j in zip(ious[rows, columns].tolist(), rows.tolist(), columns.tolist(), strict=True):
            found.append((iou, (a, i), (b, j)))
    return [(one, other) for _, one, other in sorted(found, key=lambda link: (-link[0], link[1:]))]


def _ious(masks: Tensor, others: Tensor) -> Tensor:
    """(N, P) and (M, P) bool -> (N, M) mask IoU, 0 for empty masks."""
    masks, others = masks.float(), others.float()
    shared = shared_pixels(masks, others)
    return shared / (masks.sum(1)[:, None] + others.sum(1)[None] - shared).clamp(min=1)


def _join(
    tiles: Sequence[ScoredTile],
    numbers: Sequence[TileNumbers],
    groups: Sequence[Sequence[Part]],
    grid: tuple[int, int],
) -> Candidates:
    """One candidate per group."""
    first = tiles[0].candidates
    masks = first.mask_scores.new_zeros(len(groups), *grid)
    weights = [_weights(one.masks.shape[1], one.masks.shape[2], masks.device).to(masks.dtype) for one in tiles]
    tiny = torch.finfo(masks.dtype).tiny
    best, boxes = first.class_scores.new_zeros(len(groups)), first.class_scores.new_zeros(len(groups), 4)
    embeddings: list[Tensor] = []
    for row, group in enumerate(groups):
        parts = [tiles[number].candidates for number, _ in group]
        best[row] = torch.stack([part.class_scores[i] for part, (_, i) in zip(parts, group, strict=True)]).amax()
        total = torch.zeros_like(masks[row])
        for part, (number, i) in zip(parts, group, strict=True):
            one = tiles[number]
            place = one.tile.slices_in(Tile(0, grid[0], 0, grid[1]))
            is_whole = numbers[number].is_thing[i] or numbers[number].is_kept[i]
            share = 1.0 if is_whole else part.class_scores[i] / best[row].clamp(min=tiny)
            masks[row][place] += weights[number] * share * part.mask_scores[i]
            total[place] += weights[number]
        masks[row] /= total.clamp(min=tiny)
        if first.boxes_cxcywh_norm is not None:
            own = zip((part.boxes_cxcywh_norm for part in parts), group, strict=True)
            boxes[row] = _enclosing_box(torch.stack([x[i] for x, (_, i) in own if x is not None]))
        number, i = max(group, key=lambda part: float(numbers[part[0]].confidence[part[1]]))
        own_embeddings = tiles[number].candidates.query_embeddings
        if own_embeddings is not None:
            embeddings.append(own_embeddings[i])
    return Candidates(
        class_scores=best,
        class_indices=_of_firsts([one.candidates.class_indices for one in tiles], groups),
        is_thing=_of_firsts([one.candidates.is_thing for one in tiles], groups),
        mask_scores=masks,
        boxes_cxcywh_norm=None if first.boxes_cxcywh_norm is None else boxes,
        query_embeddings=_stacked(embeddings, first.query_embeddings),
    )


def _stacked(embeddings: Sequence[Tensor], of_first: Tensor | None) -> Tensor | None:
    """(G, D) the queries of the most confident parts; None if the tiles have none."""
    if embeddings:
        return torch.stack(list(embeddings))
    return None if of_first is None else of_first[:0]


def _weights(height: int, width: int, device: torch.device) -> Tensor:
    """(h, w) weights, growing with the distance from the border."""
    rows, columns = (
        torch.minimum(torch.arange(1, n + 1, device=device), torch.arange(n, 0, -1, device=device))
        for n in (height, width)
    )
    return torch.minimum(rows[:, None], columns[None]).float()


def _enclosing_box(boxes_cxcywh_norm: Tensor) -> Tensor:
    center, half = boxes_cxcywh_norm[:, :2], boxes_cxcywh_norm[:, 2:] / 2
    low, high = (center - half).amin(0), (center + half).amax(0)
    return torch.cat(((low + high) / 2, high - low))


def _of_firsts(values: Sequence[Tensor], groups: Sequence[Sequence[Part]]) -> Tensor:
    """(G,) the value of the first part of each group, from the tiles' (N,) values."""
    numbers = [values[group[0][0]][group[0][1]] for group in groups]
    return torch.stack(numbers) if numbers else values[0][:0]


def tiled_candidates(
    x: dict[str, Any],
    settings: TileSettings,
    processor: PostProcessor,
    preprocess: Callable[[list[dict[str, Any]]], Images],
    candidates_of: Callable[[Images], Candidates],
    *,
    stride: int,
    is_fixed: bool,
) -> tuple[Candidates, ImageGeometry]:
    """Candidates of one image, fused from its tiles, and the sizes of their masks.

    Args:
        x: Detectron2's dict of the image.
        settings: settings of the tiles.
        processor: computes the confidence of candidates.
        preprocess: preprocessing of the model.
        candidates_of: returns the candidates of a batch of one image.
        stride: stride of the masks.
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
    geometry = ImageGeometry((grid[0] * stride, grid[1] * stride), size, output_size)
    return fuse_tiles(tiles, grid, is_fixed=is_fixed, num_best=processor.instance.max_per_image), geometry


def _in_image(candidates: Candidates, tile: Tile, size: tuple[int, int], stride: int) -> Candidates:
    """A tile's candidates without its padding; their boxes refer to the whole image."""
    top, bottom, left, right = tile // stride
    boxes = candidates.boxes_cxcywh_norm
    if boxes is not None:
        height, width = size
        sizes = [[tile.right - tile.left, tile.bottom - tile.top] * 2, [tile.left, tile.top, 0, 0], [width, height] * 2]
        scale, corner, whole = upload_numbers(sizes, boxes.device, boxes.dtype)
        boxes = (boxes * scale + corner) / whole
    masks = candidates.mask_scores[:, : bottom - top, : right - left]
    return candidates._replace(mask_scores=masks, boxes_cxcywh_norm=boxes)


def _score(candidates: Candidates, tile: Tile, processor: PostProcessor) -> ScoredTile:
    size = (candidates.mask_scores.shape[1], candidates.mask_scores.shape[2])
    scored = processor.score(candidates, None, ImageGeometry(size, size, size)).masks
    is_kept = processor.is_kept(candidates, scored.confidence)
    return ScoredTile(candidates, scored.confidence, scored.masks, is_kept, tile)
