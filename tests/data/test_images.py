from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from psf.data import read_image

RED, BLUE = [200, 30, 10], [10, 40, 220]


def save(path: Path, array: np.ndarray, mode: str | None = None, **options) -> str:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return str(path)


def test_channels_come_in_the_order_of_the_format(tmp_path):
    path = save(tmp_path / "a.png", np.full((2, 3, 3), RED, np.uint8))
    assert read_image(path, "RGB").tolist() == [[RED] * 3] * 2
    assert read_image(path, "BGR").tolist() == [[RED[::-1]] * 3] * 2
    assert read_image(path).flags.c_contiguous


def test_other_formats_are_refused_by_the_name_of_the_key(tmp_path):
    path = save(tmp_path / "a.png", np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(ValueError, match=r"INPUT\.FORMAT is 'YUV'"):
        read_image(path, "YUV")


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "RGBA", "CMYK", "I;16", "I", "F"])
@pytest.mark.parametrize("shape", [(1, 1), (17, 400)])
def test_every_kind_becomes_8_bit_colour(tmp_path, mode, shape):
    if mode == "I;16":
        path = save(tmp_path / "a.png", np.full(shape, 65535, np.uint16))
    elif mode == "I":
        path = save(tmp_path / "a.tif", np.full(shape, 65535, np.int32))
    elif mode == "F":
        path = save(tmp_path / "a.tif", np.full(shape, 1.0, np.float32))
    else:
        path = save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), np.full((*shape, 3), 255, np.uint8), mode)
    with Image.open(path) as image:
        assert image.mode == mode
    pixels = read_image(path)
    assert pixels.shape == (*shape, 3) and pixels.dtype == np.uint8
    assert (pixels == 255).all()


def test_16_bit_is_rescaled_and_not_cut_off(tmp_path):
    path = save(tmp_path / "a.png", np.array([[0, 257, 25700, 65535]], np.uint16))
    assert read_image(path)[0, :, 0].tolist() == [0, 1, 100, 255]  # 257 = 65535 / 255


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.2, 1.0], [0, 51, 255]),  # 0..1: times 255
        ([0.0, 100.0, 254.0], [0, 100, 254]),  # 0..255: as they are
        ([-1.0, 0.0, 3.0], [0, 64, 255]),  # anything else: (0 + 1) / (3 + 1) * 255 = 63.75
        ([0.0, 0.0, 0.0], [0, 0, 0]),
    ],
)
def test_floats_by_their_range(tmp_path, values, expected):
    path = save(tmp_path / "a.tif", np.array([values], np.float32))
    assert read_image(path)[0, :, 0].tolist() == expected


def test_32_bit_integers_beyond_16_bits_by_their_maximum(tmp_path):
    path = save(tmp_path / "a.tif", np.array([[0, 100_000, 200_000]], np.int32))
    assert read_image(path)[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, value):
    path = save(tmp_path / "a.tif", np.array([[0, value]], np.float32))
    with pytest.raises(ValueError, match=r"a\.tif: .*not finite"):
        read_image(path)


def test_transparency_is_dropped(tmp_path):
    path = save(tmp_path / "a.png", np.array([[[*RED, 0], [*BLUE, 255]]], np.uint8))
    assert read_image(path, "RGB").tolist() == [[RED, BLUE]]


def test_palette_with_transparent_entries_keeps_its_colours(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette(RED + BLUE)
    image.putdata([0, 1])
    image.save(tmp_path / "a.png", transparency=bytes([0, 128]))
    assert read_image(str(tmp_path / "a.png"), "RGB").tolist() == [[RED, BLUE]]


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (3, 5)), (6, (0, 3)), (8, (5, 0))])
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_exif_orientation_turns_the_image(tmp_path, orientation, corner, suffix):
    array = np.zeros((4, 6), np.uint8)
    array[0, 0] = 255  # the first stored pixel; where it has to be shown follows from the EXIF standard
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"a.{suffix}", array, exif=exif, **({"quality": 100} if suffix == "jpg" else {}))
    pixels = read_image(path)[..., 0]
    assert pixels.shape == ((4, 6) if orientation in (1, 3) else (6, 4))
    assert np.unravel_index(pixels.argmax(), pixels.shape) == corner


def test_broken_exif_does_not_lose_the_image(tmp_path):
    path = save(tmp_path / "a.jpg", np.full((4, 6, 3), 90, np.uint8), exif=b"Exif\x00\x00II*\x00\xff\xff\xff")
    assert read_image(path).shape == (4, 6, 3)


@pytest.mark.parametrize("content", ["missing", "empty", "text", "cut", "folder"])
def test_what_is_no_image_is_named(tmp_path, content):
    path = tmp_path / "broken.png"
    if content == "folder":
        path.mkdir()
    elif content == "cut":
        save(path, np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
        path.write_bytes(path.read_bytes()[:900])
    elif content != "missing":
        path.write_text("" if content == "empty" else "no image at all")
    with pytest.raises(ValueError, match=r"broken\.png: (no such image file|empty, corrupt or not an image)"):
        read_image(str(path))
