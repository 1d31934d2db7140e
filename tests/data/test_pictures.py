"""What people are shown of images of any channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from psf.data import as_picture, read_picture


@pytest.mark.parametrize(
    ("channels", "format", "shown"),
    [
        (3, "RGB", [0, 1, 2]),
        (3, "BGR", [2, 1, 0]),
        (1, "L", [0, 0, 0]),
        (1, "BANDS", [0, 0, 0]),
        (2, "BANDS", [0, 0, 0]),
        (3, "BANDS", [0, 1, 2]),
        (5, "BANDS", [0, 1, 2]),
    ],
)
def test_which_channels(channels: int, format: str, shown: list[int]):
    image = np.random.default_rng(0).integers(0, 256, (4, 6, channels), dtype=np.uint8)
    assert np.array_equal(as_picture(image, format), image[..., shown])


def test_bands_of_other_types_are_stretched_each_by_itself():
    """-1..3 -> 0..255, where 0 is at 63.75; 10..20 -> 0..255; 7 everywhere -> 0."""
    image = np.array([[[-1, 10, 7], [0, 15, 7], [3, 20, 7]]], np.float32)
    assert as_picture(image, "BANDS").tolist() == [[[0, 0, 0], [64, 128, 0], [255, 255, 0]]]
    assert image[0, 1].tolist() == [0, 15, 7]


def test_colours_of_other_types_are_as_they_are():
    """As another mapper than psf's may give them."""
    assert as_picture(np.full((1, 1, 3), 7.0), "RGB").tolist() == [[[7, 7, 7]]]


def test_files(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 4), dtype=np.uint8)
    np.save(tmp_path / "a.npy", pixels)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for name in ("a.npy", "a.png"):
        assert np.array_equal(read_picture(str(tmp_path / name)), pixels[..., :3])
    with pytest.raises(ValueError, match=r"b\.npy: no such image file"):
        read_picture(str(tmp_path / "b.npy"))
