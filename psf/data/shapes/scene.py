"""The scenes of the shapes datasets: layout, drawing and ground truth.

Stuff classes differ in texture, thing classes in outline; colours are drawn at random for each region and thing.
"""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import cv2
import numpy as np

from psf.data.panoptic_labels import compact
from psf.data.shapes.drawing import OUTLINES, TEXTURES, Rng, contrasting_colors, paint, pixel_grid, place, smooth_noise

__all__ = ["CATEGORIES", "Scene", "make_scene", "scene_size"]

# As in a panoptic JSON. Ids have gaps and kinds alternate, so that no code can rely on COCO's order.
CATEGORIES: list[dict[str, Any]] = [
    {"id": 3, "name": "stripes", "isthing": 0, "supercategory": "texture", "color": [70, 130, 180]},
    {"id": 4, "name": "disc", "isthing": 1, "supercategory": "shape", "color": [220, 20, 60]},
    {"id": 8, "name": "checks", "isthing": 0, "supercategory": "texture", "color": [107, 142, 35]},
    {"id": 9, "name": "dots", "isthing": 0, "supercategory": "texture", "color": [152, 120, 200]},
    {"id": 12, "name": "rectangle", "isthing": 1, "supercategory": "shape", "color": [255, 160, 0]},
    {"id": 15, "name": "triangle", "isthing": 1, "supercategory": "shape", "color": [0, 0, 200]},
    {"id": 21, "name": "bricks", "isthing": 0, "supercategory": "texture", "color": [150, 90, 60]},
    {"id": 22, "name": "star", "isthing": 1, "supercategory": "shape", "color": [250, 230, 30]},
    {"id": 30, "name": "clouds", "isthing": 0, "supercategory": "texture", "color": [170, 200, 220]},
    {"id": 37, "name": "ring", "isthing": 1, "supercategory": "shape", "color": [0, 160, 120]},
    {"id": 40, "name": "grain", "isthing": 0, "supercategory": "texture", "color": [190, 170, 120]},
]
_CLASS_OF = {category["name"]: position for position, category in enumerate(CATEGORIES)}
_STUFF, _THINGS = list(TEXTURES), list(OUTLINES)

# Sizes of the scenes; repeated sizes are more likely. No side is longer than 128 pixels.
_SIZES = [(128, 128)] * 6 + [(96, 128), (128, 96)]
_DIAMETERS = (8.0, 70.0)  # of single things, in pixels; their square root is uniform, so half are below 32
_MIN_VISIBLE = 20  # pixels; segments with fewer visible pixels are void


class Scene(NamedTuple):
    """One generated scene.

    image: (H, W, 3) uint8, RGB.
    labels: (H, W) uint8; 0 is void, k > 0 the segment whose `id` is k.
    segments: {"id": 1..S, "category_id": position in CATEGORIES, "isthing": bool, "iscrowd": bool}.
    """

    image: np.ndarray
    labels: np.ndarray
    segments: list[dict[str, Any]]


def make_scene(index: int, *, split: str, seed: int = 0) -> Scene:
    """Draw scene `index` of a split; the same arguments give the same scene, and splits share no scene.

    A scene has one to four stuff classes; no things, a few, or a group of touching things of one class; sometimes a
    crowd (a heap of tiny things in one segment) and a void patch. Thin lines and specks belong to the segment below.
    """
    rng = _random(index, split, seed)
    painter = _Painter(rng, *_draw_size(rng))
    painter.paint_stuff()
    if rng.random() < 0.3:
        painter.paint_void()
    painter.paint_lines()
    if rng.random() < 0.1:
        painter.paint_crowd()
    if rng.random() < 0.9:
        painter.paint_things()
    return painter.finish()


def scene_size(index: int, *, split: str, seed: int = 0) -> tuple[int, int]:
    """(height, width) of a scene of `make_scene`, without drawing it."""
    return _draw_size(_random(index, split, seed))


def _random(index: int, split: str, seed: int) -> Rng:
    return np.random.Generator(np.random.PCG64([zlib.crc32(split.encode()), index, seed]))


def _draw_size(rng: Rng) -> tuple[int, int]:
    return _SIZES[rng.integers(len(_SIZES))]


class _Painter:
    """A scene in the making: `image` (H, W, 3) float32 and `labels` (H, W) with ids of `segments`."""

    def __init__(self, rng: Rng, height: int, width: int) -> None:
        self.rng = rng
        self.size = np.array([width, height])
        self.image = np.empty((height, width, 3), dtype=np.float32)
        self.labels = np.zeros((height, width), dtype=np.uint8)
        self.segments: list[dict[str, Any]] = []

    def _add_segment(self, name: str, *, is_crowd: bool = False) -> int:
        info = {"category_id": _CLASS_OF[name], "isthing": name in OUTLINES, "iscrowd": is_crowd}
        self.segments.append({"id": len(self.segments) + 1, **info})
        return len(self.segments)

    def paint_stuff(self) -> None:
        """Cells around random points with wavy borders, each of one texture; a class may own several cells."""
        rng, (height, width) = self.rng, self.labels.shape
        num_classes = 1 if rng.random() < 0.12 else int(rng.integers(2, 5))
        names = [_STUFF[i] for i in rng.permutation(len(_STUFF))[:num_classes]]
        num_cells = 1 if num_classes == 1 else num_classes + int(rng.integers(0, 3))
        y, x = pixel_grid(height, width)
        bend = np.float32(rng.uniform(4, 16))
        bent_y = y + bend * smooth_noise(rng, height, width, 4)
        bent_x = x + bend * smooth_noise(rng, height, width, 4)
        points = rng.uniform(0, 1, (num_cells, 2)) * [height, width]
        cells = np.argmin([(bent_y - py) ** 2 + (bent_x - px) ** 2 for py, px in points.astype(np.float32)], axis=0)

        owner = np.arange(num_cells) % num_classes  # which class owns a cell
        mix = np.empty(cells.shape, dtype=np.float32)
        for position, name in enumerate(names):
            self._add_segment(name)
            np.copyto(mix, TEXTURES[name](rng, height, width), where=owner[cells] == position)
        self.labels = (owner + 1).astype(np.uint8)[cells]

        # Colours belong to cells, not to classes: two cells of one texture need not look alike.
        colors = [contrasting_colors(rng, rng.uniform(0, 255, 3), rng.uniform(45, 110)) for _ in range(num_cells)]
        slope_y, slope_x = rng.uniform(-0.25, 0.25, 2).astype(np.float32)
        light = 1 + slope_y * (y / height - 0.5) + slope_x * (x / width - 0.5)
        for channel in range(3):
            dark, bright = np.array([pair[:, channel] for pair in colors]).T
            self.image[..., channel] = (dark[cells] + mix * (bright - dark)[cells]) * light

    def paint_void(self) -> None:
        """An unlabelled patch: a smear of two colours."""
        rng = self.rng
        angles = np.arange(9) * (2 * np.pi / 9)
        blob = np.stack([np.cos(angles), np.sin(angles)], axis=1) * rng.uniform(0.6, 1.2, (9, 1))
        mask = np.zeros_like(self.labels)
        paint(mask, place([blob], rng.random(2) * self.size, rng.uniform(7, 20), 0.0), 1)
        dark, light = rng.uniform(0, 255, (2, 3)).astype(np.float32)
        smear = 0.5 + 0.5 * smooth_noise(rng, *mask.shape, cells=20)
        cv2.copyTo(dark + smear[..., None] * (light - dark), mask, self.image)
        self.labels[mask > 0] = 0

    def paint_lines(self) -> None:
        """Thin lines in any colour, which are not in the ground truth."""
        rng = self.rng
        for _ in range(rng.integers(0, 6)):
            start, end = (rng.uniform(0, 1, (2, 2)) * self.size).astype(int).tolist()
            cv2.line(self.image, start, end, rng.uniform(0, 255, 3).tolist(), thickness=1)

    def paint_crowd(self) -> None:
        """A heap of tiny things of one class: one segment, including the gaps between them."""
        rng = self.rng
        kind = _THINGS[rng.integers(len(_THINGS))]
        segment = self._add_segment(kind, is_crowd=True)
        middle = rng.uniform(0.15, 0.85, 2) * self.size
        background = self._color_at(middle)
        for offset in rng.standard_normal((rng.integers(16, 30), 2)) * rng.uniform(5, 11, 2):
            self._paint_thing(kind, middle + offset, rng.uniform(2.5, 3.5), segment, background)
        heap = (self.labels == segment).astype(np.uint8)
        heap = cv2.morphologyEx(heap, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
        self.labels[heap > 0] = segment

    def paint_things(self) -> None:
        """Some single things of any size and, at times, a group of one kind and size; roughly large ones first."""
        rng = self.rng
        plan = []  # (kind, centre, radius)
        for _ in range(1 + rng.poisson(2.1)):
            kind = _THINGS[rng.integers(len(_THINGS))]
            radius = 0.5 * rng.uniform(*np.sqrt(_DIAMETERS)) ** 2
            plan.append((kind, rng.uniform(0.04, 0.96, 2) * self.size, radius))
        if rng.random() < 0.25:
            kind = _THINGS[rng.integers(len(_THINGS))]
            radius = 0.5 * rng.uniform(12, 28)
            center = rng.uniform(0.2, 0.8, 2) * self.size
            for _ in range(rng.integers(3, 7)):
                plan.append((kind, center, radius * rng.uniform(0.85, 1.15)))
                direction = rng.uniform(0, 2 * np.pi)
                step = 1.9 * radius * np.array([np.cos(direction), np.sin(direction)])
                center = (center + step).clip(0.05 * self.size, 0.95 * self.size)
        plan.sort(key=lambda item: -item[2] * rng.uniform(0.6, 1.6))
        for kind, center, radius in plan:
            self._paint_thing(kind, center, radius, self._add_segment(kind), self._color_at(center))

    def _color_at(self, center: np.ndarray) -> np.ndarray:
        """(3,) mean colour around a point."""
        x, y = center.astype(int).clip(0, self.size - 1)
        return np.array(cv2.mean(self.image[max(y - 4, 0) : y + 5, max(x - 4, 0) : x + 5])[:3])

    def _paint_thing(self, kind: str, center: np.ndarray, radius: float, segment: int, background: np.ndarray) -> None:
        """Paint one thing on top: in one colour if small, otherwise in two colours with a dark rim."""
        rng = self.rng
        polygons = place(OUTLINES[kind](rng), center, radius, rng.uniform(0, 2 * np.pi))
        paint(self.labels, polygons, segment)
        first, second = contrasting_colors(rng, background, contrast=40.0)
        if radius < 5:
            paint(self.image, polygons, first.tolist())
            return
        low = (center - 1.2 * radius).astype(int).clip(0, self.size - 1)
        high = (center + 1.2 * radius + 2).astype(int)
        window = np.s_[low[1] : high[1], low[0] : high[0]]
        mask = (self.labels[window] == segment).astype(np.uint8)
        mix = first + self._thing_pattern(*mask.shape)[..., None] * (second - first)
        rim = mask - cv2.erode(mask, np.ones((3, 3), np.uint8))
        mix *= (1 - 0.45 * rim.astype(np.float32))[..., None]
        cv2.copyTo(mix, mask, self.image[window])

    def _thing_pattern(self, height: int, width: int) -> np.ndarray:
        """A weak texture of a thing: shading, or a stuff texture, so that things have no textures of their own."""
        if self.rng.random() < 0.5:
            return 0.5 + 0.5 * smooth_noise(self.rng, height, width, cells=2)
        return TEXTURES[_STUFF[self.rng.integers(len(_STUFF))]](self.rng, height, width)

    def finish(self) -> Scene:
        """Blur, specks and noise over the image; segments with too few pixels become void; ids become 1..S."""
        rng, (height, width) = self.rng, self.labels.shape
        image = cv2.GaussianBlur(self.image, (3, 3), rng.uniform(0.3, 0.8))
        num_specks = rng.integers(0, 25)
        ys, xs = (rng.uniform(0, 1, (num_specks, 2)) * [height, width]).astype(int).T
        image[ys, xs] = rng.uniform(0, 255, (num_specks, 3))
        noise = np.float32(rng.uniform(0.02, 0.16))
        image = image + noise * rng.integers(-128, 128, image.shape, dtype=np.int8).astype(np.float32)
        areas = np.bincount(self.labels.reshape(-1), minlength=len(self.segments) + 1)
        kept = np.where(areas < _MIN_VISIBLE, 0, np.arange(len(areas))).astype(np.uint8)
        labels, segments = compact(kept[self.labels], self.segments)
        return Scene(image.clip(0, 255).astype(np.uint8), labels, segments)
