"""Files that Pillow cannot read: what they are, and what to do."""

from __future__ import annotations

import logging
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from psf.data.images import read_image


def write_tiff(path: Path, samples: int, bits: int, photometric: int, *, compression: int = 1, kind: int = 1) -> None:
    """A little-endian TIFF of 2 x 3 black pixels, with any tags."""
    size = 6 * samples * bits // 8
    entries = {256: 3, 257: 2, 259: compression, 262: photometric, 277: samples, 278: 2, 279: size, 339: kind}
    start = 8 + 2 + 12 * (len(entries) + 2) + 4  # after the header and the directory
    entries[273] = start + 2 * samples
    rows = [(tag, struct.pack("<HHII", tag, 4, 1, value)) for tag, value in entries.items()]
    depths = struct.pack("<H", bits) * samples
    place = depths.ljust(4, b"\0") if samples < 3 else struct.pack("<I", start)
    rows.append((258, struct.pack("<HHI", 258, 3, samples) + place))
    directory = b"".join(row for _, row in sorted(rows))
    path.write_bytes(b"II*\0\x08\0\0\0" + struct.pack("<H", len(rows)) + directory + bytes(4) + depths + bytes(size))


def test_the_writer_of_these_tests(tmp_path: Path):
    write_tiff(tmp_path / "a.tif", 3, 8, 2)
    assert read_image(str(tmp_path / "a.tif")).shape == (2, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "options", "found"),
    [
        ((3, 32, 2), {"kind": 3}, r"3 channels \(RGB\) of 32 bits, floating point, compression none"),
        ((1, 64, 1), {"kind": 3}, r"1 channel \(gray\) of 64 bits, floating point"),
        ((5, 8, 1), {}, r"5 channels \(gray\) of 8 bits, unsigned integers"),
        (
            (3, 8, 2),
            {"compression": 34712},
            r"3 channels \(RGB\) of 8 bits, unsigned integers, compression number 34712",
        ),
        ((3, 16, 8), {}, r"3 channels \(CIELab\) of 16 bits"),
    ],
)
def test_tiffs(tmp_path: Path, arguments: tuple, options: dict, found: str):
    write_tiff(tmp_path / "a.tif", *arguments, **options)
    with pytest.raises(ValueError, match=rf"^\S*a\.tif: a TIFF with {found}.*, which Pillow cannot.* \.npy file"):
        read_image(str(tmp_path / "a.tif"))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")  # of Pillow, which tries all formats
@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", r"empty, corrupt or not an image \(it has 0 bytes\)"),
        (b"hello", r"empty, corrupt or not an image \(Pillow does not recognize its format\)"),
        (b"II*\0\xff\xff\0\0", "empty, corrupt or not an image"),
        (b"II+\0" + bytes(40), "empty, corrupt or not an image"),
        (b"%PDF-1.7\n", "a PDF document: convert its pages to PNG"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer .* run `git lfs pull`"),
        (b"<!DOCTYPE html><html>", "an HTML page in place of the image: download the image again"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "an XML text, perhaps an SVG drawing"),
        (b"\x93NUMPY\x01\0", r"a NumPy array: name it \*\.npy"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 or MATLAB file: save its array"),
        (bytes(128) + b"DICM", "a DICOM file"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", r"a HEIC \(HEIF\) image.*convert it to PNG or JPEG"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isom", "a video"),
        (b"\xff\x0a" + bytes(20), "a JPEG XL image"),
        (b"PK\x03\x04" + bytes(20), "a compressed archive: unpack it"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, found: str):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^\S*a\.png: (not an image that psf reads, but )?{found}") as caught:
        read_image(str(tmp_path / "a.png"))
    assert "\n" not in str(caught.value)


def test_pages_after_the_first_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    first, second = (Image.fromarray(np.full((4, 5, 3), value, np.uint8)) for value in (10, 200))
    pages, single = tmp_path / "pages.tif", tmp_path / "single.tif"
    first.save(pages, save_all=True, append_images=[second])
    first.save(single)
    with caplog.at_level(logging.WARNING):
        for path in (pages, single, pages):
            assert (read_image(str(path)) == 10).all()
    assert [record.message for record in caplog.records] == [f"{pages}: a TIFF with several pages; psf reads the first"]


def test_overviews_are_no_pages(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    image, overview = Image.new("RGB", (8, 8), (9, 9, 9)), Image.new("RGB", (4, 4))
    overview.encoderinfo = {"tiffinfo": {254: 1}}
    image.save(tmp_path / "a.tif", save_all=True, append_images=[overview])
    with Image.open(tmp_path / "a.tif") as written:
        assert written.n_frames == 2
    with caplog.at_level(logging.WARNING):
        assert read_image(str(tmp_path / "a.tif")).shape == (8, 8, 3)
    assert not caplog.records
