"""Decoders written from the documentation of the formats, bit by bit and pixel by pixel."""

from __future__ import annotations

import numpy as np


def decode_rle_pack(data: list[int]) -> list[int]:
    """The words of @thi.ng/rle-pack: a header, then runs of one repeated word or of single words."""
    bits = [(byte >> shift) & 1 for byte in data for shift in range(7, -1, -1)]
    position = 0

    def read(number: int) -> int:
        nonlocal position
        value = 0
        for bit in bits[position : position + number]:
            value = 2 * value + bit
        position += number
        return value

    number, word_size = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    words: list[int] = []
    while len(words) < number:
        is_repeated = read(1)
        length = read(sizes[read(2)]) + 1
        words += [read(word_size)] * length if is_repeated else [read(word_size) for _ in range(length)]
    return words


def decode_cvat(runs: list[int], left: int, top: int, width: int, size: tuple[int, int]) -> np.ndarray:
    """Runs of pixels outside and inside, in turn, row by row of a box."""
    mask, offset, value = np.zeros(size, dtype=bool), 0, False
    for run in runs:
        for _ in range(run):
            y, x = divmod(offset, width)
            mask[top + y, left + x] = value
            offset += 1
        value = not value
    return mask


def contains(polygon: list[list[float]], size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: whether the center of each pixel is inside of a polygon, by parity: a ray to the right."""
    inside = np.zeros(size, dtype=bool)
    for (x0, y0), (x1, y1) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        for row in range(size[0]):
            y = row + 0.5
            if (y0 > y) != (y1 > y):
                crossing = x0 + (y - y0) / (y1 - y0) * (x1 - x0)
                inside[row] ^= np.arange(size[1]) + 0.5 < crossing
    return inside
