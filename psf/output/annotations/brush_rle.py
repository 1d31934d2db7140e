"""Label Studio's run-length encoding of brush masks: that of `@thi.ng/rle-pack`, a stream of bits.

The stream begins with the number of words (32 bits), the bits of a word less 1 (5 bits) and four sizes less 1 (4 bits
each). Then come runs: 1 bit (1: one word is repeated; 0: words follow one by one), 2 bits that choose one of the sizes,
as many bits with the number of words less 1, and the word or words. Label Studio's words are the bytes of an RGBA
image, whose opaque pixels are the mask (`label_studio_converter/brush.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from psf.errors import UserError

__all__ = ["decode_brush", "encode_brush"]

_SIZES = (3, 4, 8, 16)  # bits of the lengths of runs, as in Label Studio's own converter
_WORD = 8  # bits
_CHANNELS = 4
_HEADER = 32 + 5 + 4 * 4  # bits
_LONGEST_HEAD = 1 + 2 + 16  # bits before the word or words of a run


def encode_brush(mask: np.ndarray) -> list[int]:
    """An (H, W) bool mask as bytes, 0 to 255; the pixels of the mask are 255 in all four channels."""
    words = mask.ravel()
    starts = np.concatenate([[0], np.flatnonzero(words[1:] != words[:-1]) + 1])
    lengths = np.diff(np.append(starts, words.size)) * _CHANNELS
    bits = [f"{words.size * _CHANNELS:032b}{_WORD - 1:05b}", *(f"{size - 1:04b}" for size in _SIZES)]
    for is_inside, length in zip(words[starts].tolist(), lengths.tolist(), strict=True):
        word = "1" * _WORD if is_inside else "0" * _WORD
        while length:
            choice = next((i for i, size in enumerate(_SIZES) if length <= 1 << size), len(_SIZES) - 1)
            part = min(length, 1 << _SIZES[choice])
            bits.append(f"1{choice:02b}{part - 1:0{_SIZES[choice]}b}{word}")
            length -= part
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def decode_brush(data: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """The (H, W) bool mask of bytes as Label Studio stores them: pixels that are not transparent.

    Args:
        data: whole numbers, 0 to 255.
        size: height and width of the image.

    Raises:
        UserError: if the bytes are damaged, or are not those of an image of this size.
    """
    number = size[0] * size[1] * _CHANNELS
    most = (_HEADER + number * (_LONGEST_HEAD + _WORD)) // 8 + 8
    if len(data) > most or not all(type(value) is int and 0 <= value < 256 for value in data):
        raise UserError(f"its 'rle' is damaged: expected at most {most} numbers from 0 to 255")
    bits = _Bits("".join(f"{value:08b}" for value in data))
    if (found := bits.read(32)) != number:
        raise UserError(f"its 'rle' has {found} values, expected {number}: {_CHANNELS} for each pixel")
    if (word := bits.read(5) + 1) != _WORD:
        raise UserError(f"its 'rle' has values of {word} bits, expected {_WORD}")
    sizes = [bits.read(4) + 1 for _ in range(4)]
    words: np.ndarray = np.zeros(number, dtype=np.uint8)
    position = 0
    while position < number:
        is_repeated = bits.read(1)
        length = bits.read(sizes[bits.read(2)]) + 1
        part = words[position : position + length]
        if is_repeated:
            part[:] = bits.read(_WORD)
        else:
            part[:] = np.frombuffer(bits.read(_WORD * part.size).to_bytes(part.size, "big"), dtype=np.uint8)
        position += length
    return words.reshape(*size, _CHANNELS)[..., 3] > 0


class _Bits:
    """A stream of bits, as a text of 0 and 1."""

    def __init__(self, text: str) -> None:
        self._text, self._position = text, 0

    def read(self, number: int) -> int:
        part = self._text[self._position : self._position + number]
        if len(part) < number:
            raise UserError("its 'rle' is damaged: it ends before the last pixel")
        self._position += number
        return int(part, 2)
