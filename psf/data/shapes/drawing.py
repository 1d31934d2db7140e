"""Textures of stuff and outlines of things for the generated scenes.

A texture is a (H, W) float32 pattern in [0, 1] that mixes two colours; an outline is a list of closed polygons (inner
polygons are holes) in units of the thing's radius around its centre. Both draw their parameters from `rng`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

__all__ = ["OUTLINES", "TEXTURES", "contrasting_colors", "paint", "pixel_grid", "place", "smooth_noise"]

Rng = np.random.Generator


def pixel_grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 y, (H, 1), and x, (1, W), of every pixel."""
    return np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)[None]


def smooth_noise(rng: Rng, height: int, width: int, cells: int) -> np.ndarray:
    """(H, W) float32 noise in about [-1, 1] that varies over 1/`cells` of the larger side."""
    coarse = rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32)
    side = max(height, width)
    return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)[:height, :width]


def _rotated_grid(rng: Rng, height: int, width: int, max_angle: float = np.pi) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) coordinates in pixels along two orthogonal axes at a random angle and offset."""
    angle = rng.uniform(-max_angle, max_angle)
    offset_u, offset_v = rng.uniform(0, 64, 2).astype(np.float32)
    y, x = pixel_grid(height, width)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return x * cos + (y * sin + offset_u), y * cos - (x * sin - offset_v)


def _stripes(rng: Rng, height: int, width: int) -> np.ndarray:
    u, _ = _rotated_grid(rng, height, width)
    return (0.5 + 1.2 * np.sin(u * np.float32(2 * np.pi / rng.uniform(6, 13)))).clip(0, 1)


def _checks(rng: Rng, height: int, width: int) -> np.ndarray:
    u, v = _rotated_grid(rng, height, width)
    cell = np.float32(np.pi / rng.uniform(5, 10))
    return (0.5 + 3 * np.sin(u * cell) * np.sin(v * cell)).clip(0, 1)


def _dots(rng: Rng, height: int, width: int) -> np.ndarray:
    u, v = _rotated_grid(rng, height, width)
    pitch = np.float32(2 * np.pi / rng.uniform(7, 12))
    return (3 * (np.cos(u * pitch) + np.cos(v * pitch)) - 1).clip(0, 1)


def _bricks(rng: Rng, height: int, width: int) -> np.ndarray:
    u, v = _rotated_grid(rng, height, width, max_angle=0.35)
    course, length = rng.uniform(6, 9), rng.uniform(13, 20)
    row = np.floor(v / np.float32(course))
    along = (u + row * np.float32(length / 2)) % np.float32(length)
    is_mortar = (v - row * np.float32(course) < 1.6) | (along < 1.6)
    return np.where(is_mortar, np.float32(0), np.float32(1))


def _clouds(rng: Rng, height: int, width: int) -> np.ndarray:
    cells = int(rng.integers(4, 7))
    return (0.5 + 0.55 * smooth_noise(rng, height, width, cells)).clip(0, 1)


def _grain(rng: Rng, height: int, width: int) -> np.ndarray:
    coarse = rng.random(((height + 1) // 2, (width + 1) // 2), dtype=np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


TEXTURES: dict[str, Callable[[Rng, int, int], np.ndarray]] = {
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
    "bricks": _bricks,
    "clouds": _clouds,
    "grain": _grain,
}


def _polygon(angles: np.ndarray, radii: np.ndarray | float) -> np.ndarray:
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.reshape(radii, (-1, 1))


_CIRCLE = _polygon(np.linspace(0, 2 * np.pi, 32, endpoint=False), 1.0)


def _disc(rng: Rng) -> list[np.ndarray]:
    return [_CIRCLE * [1.0, rng.uniform(0.8, 1.0)]]


def _rectangle(rng: Rng) -> list[np.ndarray]:
    half = np.array([0.85, 0.85 * rng.uniform(0.55, 1.0)])
    return [half * [[-1, -1], [1, -1], [1, 1], [-1, 1]]]


def _triangle(rng: Rng) -> list[np.ndarray]:
    angles = np.arange(3) * (2 * np.pi / 3) + rng.uniform(-0.25, 0.25, 3)
    return [_polygon(angles, 1.1)]


def _star(rng: Rng) -> list[np.ndarray]:
    inner = rng.uniform(0.4, 0.5)
    return [_polygon(np.arange(10) * (np.pi / 5), np.tile([1.1, 1.1 * inner], 5))]


def _ring(rng: Rng) -> list[np.ndarray]:
    return [_CIRCLE, _CIRCLE * rng.uniform(0.5, 0.6)]


OUTLINES: dict[str, Callable[[Rng], list[np.ndarray]]] = {
    "disc": _disc,
    "rectangle": _rectangle,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
}


def place(outline: list[np.ndarray], center: np.ndarray, radius: float, angle: float) -> list[np.ndarray]:
    """Polygons for `paint`: the outline turned, scaled and moved to `center` (x, y), in 16ths of a pixel."""
    cos, sin = radius * np.cos(angle), radius * np.sin(angle)
    turn = np.array([[cos, sin], [-sin, cos]]) * 16
    return [(polygon @ turn + center * 16).round().astype(np.int32) for polygon in outline]


def paint(canvas: np.ndarray, polygons: list[np.ndarray], color: Any) -> None:
    """Fill placed polygons on a (H, W) or (H, W, C) canvas, in place, except their holes."""
    cv2.fillPoly(canvas, polygons, color, shift=4)


def contrasting_colors(rng: Rng, background: np.ndarray, contrast: float) -> np.ndarray:
    """(2, 3) RGB in [10, 220]: a colour unlike `background`, and a darker or lighter shade of it."""
    candidates = rng.random((4, 3)) * 190 + 20
    first = candidates[np.abs(candidates - background).sum(axis=1).argmax()]
    shift = contrast if first.sum() < 345 else -contrast
    second = first + shift * (0.8 + 0.4 * rng.random(3))
    return np.array([first, np.minimum(np.maximum(second, 10), 220)], dtype=np.float32)
