from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from psf.data import as_picture, image_suffixes, limit_pixels, read_image, read_picture
from psf.data.images import image_size
from psf.errors import UserError

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


def test_32_bit_integers_within_16_bits_as_16_bits(tmp_path):
    """Times 255 / 65535, whatever their maximum is: 1000 / 257 = 3.9, 25700 / 257 = 100."""
    path = save(tmp_path / "a.tif", np.array([[0, 1000, 25_700]], np.int32))
    assert read_image(path)[0, :, 0].tolist() == [0, 4, 100]


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


@pytest.mark.parametrize("content", ["missing", "empty", "text", "cut"])
def test_what_is_no_image_is_named(tmp_path, content):
    path = tmp_path / "broken.png"
    if content == "cut":
        save(path, np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
        path.write_bytes(path.read_bytes()[:900])
    elif content != "missing":
        path.write_text("" if content == "empty" else "no image at all")
    with pytest.raises(ValueError, match=r"broken\.png: (no such image file|empty, corrupt or not an image)"):
        read_image(str(path))


SIZE = (5, 7)


def numbers(channels: int, dtype: type = np.uint8, high: int = 256) -> np.ndarray:
    return np.random.default_rng(0).integers(0, high, (*SIZE, channels)).astype(dtype)


def write_png_of_16_bits(path: Path, pixels: np.ndarray, kind: int) -> None:
    """By the PNG standard; kind 0: gray, 2: RGB, 4: gray and alpha, 6: RGBA."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    parts = [struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def write_tiff(path: Path, pixels: np.ndarray, *, photometric: int, extra: int = 0, is_planar: bool = False) -> None:
    """By the TIFF 6 standard, uncompressed, little-endian; photometric 1: the least is black, 2: RGB."""
    height, width, channels = pixels.shape
    planes = np.moveaxis(pixels, 2, 0) if is_planar else pixels[None]
    strips = [plane.astype(plane.dtype.newbyteorder("<")).tobytes() for plane in planes]
    bits, kind = 8 * pixels.dtype.itemsize, {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    starts = np.cumsum([8, *map(len, strips)]).tolist()
    tags = [
        (256, [width]), (257, [height]), (258, [bits] * channels), (259, [1]), (262, [photometric]),
        (273, starts[:-1]), (277, [channels]), (278, [height]), (279, [len(strip) for strip in strips]),
        (284, [1 + is_planar]), (338, [extra] * (channels - (3 if photometric == 2 else 1))), (339, [kind] * channels),
    ]  # fmt: skip
    tags = [(tag, values) for tag, values in tags if values]
    directory, beyond = starts[-1], b""
    end = directory + 2 + 12 * len(tags) + 4
    entries = b""
    for tag, values in tags:  # all of type LONG, the 4; what is longer than one lies beyond the directory
        data = struct.pack(f"<{len(values)}I", *values)
        entries += struct.pack("<HHI", tag, 4, len(values))
        entries += data if len(values) == 1 else struct.pack("<I", end + len(beyond))
        beyond += data if len(values) > 1 else b""
    head = b"II*\0" + struct.pack("<I", directory)
    path.write_bytes(head + b"".join(strips) + struct.pack("<H", len(tags)) + entries + bytes(4) + beyond)


class TestArrays:
    @pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 13])
    @pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, ">i4", np.float16, np.float32, ">f8"])
    def test_numbers_and_order_are_the_files(self, tmp_path: Path, channels: int, dtype: type):
        array = numbers(channels, dtype, high=100)
        np.save(tmp_path / "a.npy", array)
        bands = read_image(str(tmp_path / "a.npy"), "BANDS")
        assert bands.dtype == (np.uint8 if array.dtype == np.uint8 else np.float32)
        assert np.array_equal(bands, array)
        assert bands.flags.c_contiguous and bands.flags.writeable

    def test_one_band_may_have_no_axis(self, tmp_path: Path):
        array = numbers(1)[..., 0]
        np.save(tmp_path / "a.npy", np.asfortranarray(array))
        assert np.array_equal(read_image(str(tmp_path / "a.npy"), "BANDS"), array[..., None])

    def test_a_mask_is_zeros_and_ones(self, tmp_path: Path):
        np.save(tmp_path / "a.npy", np.eye(3, dtype=bool))
        bands = read_image(str(tmp_path / "a.npy"), "BANDS")
        assert bands.dtype == np.uint8 and np.array_equal(bands[..., 0], np.eye(3))

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.zeros((2, 2, 2, 2)), r"shape \(2, 2, 2, 2\), expected a non-empty \(H, W\) or \(H, W, C\)"),
            (np.zeros(5), r"shape \(5,\)"),
            (np.zeros((2, 2), complex), r"complex128, expected real numbers"),
            (np.full((2, 2), "a"), r"expected real numbers"),
            (np.full((2, 2), None), r"not an array of numbers"),
            (np.zeros((0, 5, 3)), r"shape \(0, 5, 3\)"),
            (np.array([[0.0, np.nan]]), r"not finite"),
            (np.array([[1e300]]), r"not finite as 32-bit floats"),
        ],
    )
    def test_other_arrays_are_named(self, tmp_path: Path, array: np.ndarray, message: str):
        np.save(tmp_path / "broken.npy", array)
        with pytest.raises(ValueError, match=rf"broken\.npy: .*{message}"):
            read_image(str(tmp_path / "broken.npy"), "BANDS")

    @pytest.mark.parametrize("content", ["missing", "empty", "text", "cut", "header"])
    def test_what_is_no_array_is_named(self, tmp_path: Path, content: str):
        path = tmp_path / "broken.npy"
        if content == "cut":
            np.save(path, numbers(4))
            path.write_bytes(path.read_bytes()[:-9])
        elif content == "header":  # Python's tokenizer raises an error of its own
            np.save(path, numbers(4))
            path.write_bytes(path.read_bytes().replace(b"False", b"(alse"))
        elif content != "missing":
            path.write_text("" if content == "empty" else "no array at all")
        with pytest.raises(ValueError, match=r"broken\.npy: (no such image file|empty, corrupt or not an array)"):
            read_image(str(path), "BANDS")


class TestPictures:
    @pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
    @pytest.mark.parametrize("suffix", ["png", "tif"])
    def test_8_bits(self, tmp_path: Path, mode: str, suffix: str):
        """Transparent pixels keep their colours, and transparency is a band."""
        array = numbers(len(mode))
        Image.fromarray(array.squeeze()).save(tmp_path / f"a.{suffix}")
        bands = read_image(str(tmp_path / f"a.{suffix}"), "BANDS")
        assert bands.dtype == np.uint8 and np.array_equal(bands, array)

    @pytest.mark.parametrize(("kind", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
    def test_png_of_16_bits(self, tmp_path: Path, kind: int, channels: int):
        array = numbers(channels, np.uint16, high=65536)
        write_png_of_16_bits(tmp_path / "a.png", array, kind)
        bands = read_image(str(tmp_path / "a.png"), "BANDS")
        assert bands.dtype == np.float32 and np.array_equal(bands, array)

    @pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
    def test_deep_gray_tiff(self, tmp_path: Path, dtype: type):
        array = numbers(1, dtype, high=40_000)
        Image.fromarray(array[..., 0]).save(tmp_path / "a.tif")
        assert np.array_equal(read_image(str(tmp_path / "a.tif"), "BANDS"), array)

    @pytest.mark.parametrize("channels", [3, 4])
    @pytest.mark.parametrize("extra", [0, 1, 2])
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_tiff_of_colours(self, tmp_path: Path, channels: int, extra: int, dtype: type):
        """Extra 0: a fourth band of no meaning; 1: transparency that the others are multiplied by; 2: are not."""
        array = numbers(channels, dtype, high=np.iinfo(dtype).max)
        write_tiff(tmp_path / "a.tif", array, photometric=2, extra=extra)
        assert np.array_equal(read_image(str(tmp_path / "a.tif"), "BANDS"), array)

    def test_what_opencv_writes(self, tmp_path: Path):
        array = numbers(3, np.uint16, high=65536)
        cv2.imwrite(str(tmp_path / "a.tif"), array[..., ::-1])
        assert np.array_equal(read_image(str(tmp_path / "a.tif"), "BANDS"), array)

    @pytest.mark.parametrize(
        ("channels", "dtype", "more", "reason"),
        [
            (
                2,
                np.uint8,
                {"photometric": 1},
                "neither Pillow nor OpenCV",
            ),  # Pillow reads one
            (5, np.uint8, {"photometric": 2}, "neither Pillow nor OpenCV"),  # Pillow reads three
            (4, np.uint8, {"photometric": 1}, "which Pillow cannot decode"),  # Pillow opens none of these
            (4, np.uint16, {"photometric": 1}, "which Pillow cannot decode"),
            (4, np.uint16, {"photometric": 2, "is_planar": True}, "unknown raw mode"),
            (13, np.uint16, {"photometric": 1}, "which Pillow cannot decode"),
        ],
    )
    def test_tiffs_that_would_be_read_wrongly_are_refused(
        self, tmp_path: Path, channels: int, dtype: type, more: dict, reason: str
    ):
        write_tiff(tmp_path / "a.tif", numbers(channels, dtype), **more)
        with pytest.raises(UserError, match=rf"a\.tif: .*{reason}"):
            read_image(str(tmp_path / "a.tif"), "BANDS")

    def test_palette_and_1_bit(self, tmp_path: Path):
        image = Image.new("P", (2, 1))
        image.putpalette([200, 30, 10, 10, 40, 220])
        image.putpixel((1, 0), 1)
        image.save(tmp_path / "a.png", transparency=b"\x00\xff")
        assert read_image(str(tmp_path / "a.png"), "BANDS").tolist() == [[[200, 30, 10], [10, 40, 220]]]
        Image.fromarray(np.array([[False, True]])).save(tmp_path / "b.png")
        assert read_image(str(tmp_path / "b.png"), "BANDS").tolist() == [[[0], [255]]]

    def test_exif_orientation_turns_all_channels(self, tmp_path: Path):
        array = numbers(4)
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
        Image.fromarray(array).save(tmp_path / "a.png", exif=exif)
        assert np.array_equal(read_image(str(tmp_path / "a.png"), "BANDS"), np.rot90(array, -1))

    def test_another_number_of_channels_than_the_models(self, tmp_path: Path):
        Image.fromarray(numbers(4)).save(tmp_path / "a.png")
        with pytest.raises(ValueError, match=r"a\.png: has 4 channels, the model takes 5, .*MODEL\.PIXEL_MEAN"):
            read_image(str(tmp_path / "a.png"), "BANDS", 5)
        assert read_image(str(tmp_path / "a.png"), "BANDS", 4).shape == (*SIZE, 4)

    @pytest.mark.parametrize("content", ["missing", "empty", "cut"])
    def test_what_is_no_image_is_named(self, tmp_path: Path, content: str):
        path = tmp_path / "broken.png"
        if content == "cut":
            write_png_of_16_bits(path, np.random.default_rng(0).integers(0, 65536, (60, 60, 4)), 6)
            path.write_bytes(path.read_bytes()[:900])
        elif content == "empty":
            path.touch()
        with pytest.raises(ValueError, match=r"broken\.png: (no such image file|empty, corrupt or not an image)"):
            read_image(str(path), "BANDS")


class TestGray:
    def test_gray_stays_and_colour_has_its_luma(self, tmp_path: Path):
        """ITU-R 601: 0.299 R + 0.587 G + 0.114 B; of (200, 30, 10): 59.8 + 17.61 + 1.14 = 78.55."""
        Image.fromarray(numbers(1)[..., 0]).save(tmp_path / "a.png")
        gray = read_image(str(tmp_path / "a.png"), "L")
        assert gray.dtype == np.uint8 and np.array_equal(gray, numbers(1))
        Image.new("RGB", (1, 1), (200, 30, 10)).save(tmp_path / "b.png")
        assert read_image(str(tmp_path / "b.png"), "L").tolist() == [[[79]]]

    def test_16_bits_are_rescaled(self, tmp_path: Path):
        Image.fromarray(np.array([[0, 257, 25700, 65535]], np.uint16)).save(tmp_path / "a.png")
        assert read_image(str(tmp_path / "a.png"), "L")[0, :, 0].tolist() == [0, 1, 100, 255]


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


def test_images_above_the_limit_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    paths = [save(tmp_path / f"{side}.png", np.zeros((side, 10), np.uint8)) for side in (10, 15, 50)]
    np.save(tmp_path / "a.npy", np.zeros((11, 10)))
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("decoded"))
    limit_pixels(100)
    for path in paths[1:]:  # Pillow warns of the first and refuses the second
        with pytest.raises(ValueError, match=r"megapixels, the limit .*INPUT\.PSF_MAX_PIXELS .* to (150|500) "):
            read_image(path)
    with pytest.raises(ValueError, match=r"a\.npy: 10 x 11 pixels, .*to 110 or more"):
        read_image(str(tmp_path / "a.npy"), "BANDS")
    monkeypatch.undo()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_image(paths[0]).shape == (10, 10, 3)
    with pytest.raises(ValueError, match=r"INPUT\.PSF_MAX_PIXELS .* is 0: expected 1 or more"):
        limit_pixels(0)


def test_postscript_is_not_executed(tmp_path, monkeypatch):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *arguments: pytest.fail("executed"))
    with pytest.raises(ValueError, match=r"a\.png: .*PostScript is a program, which psf does not execute"):
        read_image(str(tmp_path / "a.png"))


def test_a_damaged_header_whose_error_is_no_usual_one(tmp_path):
    """A TIFF whose offset of the pixels is a fraction: Pillow raises TypeError."""
    path = tmp_path / "a.tif"
    Image.new("L", (24, 20)).save(path)
    offsets, fraction = struct.pack("<HH", 273, 4), struct.pack("<HH", 273, 11)
    content = path.read_bytes()
    assert content.count(offsets) == 1 and content.startswith(b"II")
    path.write_bytes(content.replace(offsets, fraction))
    with pytest.raises(ValueError, match=r"a\.tif: empty, corrupt or not an image"):
        read_image(str(path))


def test_pipes_and_folders_are_no_images(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "a.npy").mkdir()
    for path, kind in ((tmp_path / "a.png", "a pipe"), (tmp_path, "a folder"), (tmp_path / "a.npy", "a folder")):
        for format in ("BGR", "BANDS"):
            with pytest.raises(ValueError, match=f": {kind}.*expected a regular file"):
                read_image(str(path), format)


def test_suffixes_are_pillows():
    assert {".jpg", ".jfif", ".jp2", ".tga", ".webp", ".png"} <= image_suffixes()
    assert not {".eps", ".ps", ".mpg", ".h5", ".txt", ".npy"} & image_suffixes()


def test_many_rows_are_rescaled_by_one_range(tmp_path):
    values = np.linspace(-3, 7, 700 * 4, dtype=np.float32).reshape(700, 4)
    path = save(tmp_path / "a.tif", values)
    assert (read_image(path)[..., 0] == ((values.astype(np.float64) + 3) * 25.5).round()).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_the_size_is_that_of_the_image_that_is_read(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = str(tmp_path / f"a.{suffix}")
    Image.new("RGB", (3, 2)).save(path, exif=exif)
    assert image_size(path) == read_image(path).shape[:2]


def test_the_size_of_other_files(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", np.zeros((4, 5, 6), np.uint16))
    assert image_size(str(tmp_path / "a.npy")) == (4, 5)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match=r"text\.png: empty, corrupt or not an image"):
        image_size(str(tmp_path / "text.png"))
    with pytest.raises(UserError, match=r"none\.png: no such image file"):
        image_size(str(tmp_path / "none.png"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 599)
    Image.new("1", (30, 20)).save(tmp_path / "large.png")
    with pytest.raises(UserError, match=r"large\.png: .*0\.0 megapixels, the limit is"):
        image_size(str(tmp_path / "large.png"))
