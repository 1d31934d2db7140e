"""Images in any form: the same picture gives the same result; others are refused by name."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import psf
from psf.data import limit_pixels
from psf.data.images import ImageTooLarge, read_image
from psf.errors import UserError
from psf.prediction.images import load_image
from tests.model_files import noise

PICTURE = noise()
BIG = 89_478_485  # the default limit of pixels


def png(image: Image.Image, **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG", **settings)
    return file.getvalue()


def loaded(predictor: psf.Predictor, source: Any, order: str = "RGB") -> tuple[np.ndarray, np.ndarray]:
    one = load_image(source, predictor._predictor, order)
    return one.model_input["image"].numpy(), one.picture


def test_all_forms_are_the_same_picture(predictor: psf.Predictor, tmp_path: Path) -> None:
    image = Image.fromarray(PICTURE)
    image.save(tmp_path / "a.png")
    expected = loaded(predictor, tmp_path / "a.png")
    assert (expected[1] == PICTURE).all()  # the file is RGB, and so is the picture
    forms = [str(tmp_path / "a.png"), png(image), image, PICTURE, PICTURE.astype(np.float32), PICTURE.astype(np.int64)]
    forms += [torch.from_numpy(PICTURE).permute(2, 0, 1), np.dstack([PICTURE, PICTURE[..., :1]]), image.convert("RGBA")]
    for form in forms:
        found = loaded(predictor, form)
        assert (found[0] == expected[0]).all() and (found[1] == PICTURE).all(), type(form)
    for form in (PICTURE[..., ::-1], torch.from_numpy(PICTURE[..., ::-1].copy()).permute(2, 0, 1)):
        found = loaded(predictor, form, "BGR")
        assert (found[0] == expected[0]).all() and (found[1] == PICTURE).all()


def test_gray_and_deep(predictor: psf.Predictor) -> None:
    gray = PICTURE[..., 0]
    color = np.repeat(gray[..., None], 3, axis=2)
    deep = Image.fromarray(gray.astype(np.uint16) * 257)
    forms = [gray, gray[..., None], torch.from_numpy(gray.copy()), Image.fromarray(gray), deep, png(deep)]
    for form in forms:
        assert (loaded(predictor, form)[1] == color).all()


@pytest.mark.parametrize("format", ["BGR", "RGB", "L", "BANDS"])
def test_bytes_are_read_in_memory(tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also deep files, which a second library reads, and damaged ones, which are looked at again."""
    monkeypatch.setattr(tempfile, "tempdir", "/does/not/exist")
    deep = cv2.imencode(".png", PICTURE.astype(np.uint16) * 200)[1].tobytes()
    for data in (png(Image.fromarray(PICTURE)), deep):
        (tmp_path / "a.png").write_bytes(data)
        expected = read_image(str(tmp_path / "a.png"), format)
        found = read_image("in memory", format, data=data)
        assert found.dtype == expected.dtype and (found == expected).all()
    for data in (b"%PDF", png(Image.fromarray(PICTURE))[:100], b"\x93NUMPY"):
        (tmp_path / "b").write_bytes(data)
        with pytest.raises(UserError) as expected_error:
            read_image(str(tmp_path / "b"), format)
        with pytest.raises(UserError) as error:
            read_image("in memory", format, data=data)
        assert str(error.value) == str(expected_error.value).replace(str(tmp_path / "b"), "in memory")


def test_exif_orientation(predictor: psf.Predictor) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    data = png(Image.fromarray(PICTURE), exif=exif)
    turned = np.rot90(PICTURE, -1)
    for form in (data, Image.open(io.BytesIO(data))):
        assert (loaded(predictor, form)[1] == turned).all()
    assert predictor(data).size == (96, 64)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("https://a/b.jpg", "https://a/b.jpg is an address: download it"),
        ("no.jpg", "no.jpg: no such image file"),
        (b"", r"the image \(0 bytes\): empty"),
        (b"GIF89a!", r"the image \(7 bytes\): "),
        (7, "an image is of type int: expected a path"),
        (None, "an image is of type NoneType"),
        (PICTURE / 255, r"the image \(ndarray\) has values from 0.* to 0.*: expected 0 to 255; multiply it by 255"),
        (PICTURE.astype(np.uint16) * 257, "expected 0 to 255; divide it by 257"),
        (PICTURE - 300.0, "expected 0 to 255; scale it"),
        (np.full((9, 9, 3), np.nan), "has NaN or infinite values"),
        (PICTURE[:0], r"has the shape \(0, 96, 3\)"),
        (np.zeros((9, 9, 2), np.uint8), "with 1, 3 or 4 channels"),
        (np.zeros((1, 9, 9, 3), np.uint8), r"has the shape \(1, 9, 9, 3\): expected \(height, width, channels\)"),
        (np.full((9, 9, 3), "x"), "is of <U1: expected numbers"),
        (torch.zeros(64, 96, 3), r"use image.permute\(2, 0, 1\)"),
    ],
)
def test_what_is_no_image(predictor: psf.Predictor, source: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        predictor(source)
    assert "\n" not in str(caught.value)


def test_unknown_words(predictor: psf.Predictor) -> None:
    with pytest.raises(UserError, match="channel_order is 'bgr': expected one of RGB, BGR"):
        predictor(PICTURE, channel_order="bgr")
    with pytest.raises(UserError, match="tasks has 'boxes': expected some of panoptic, instance, semantic"):
        predictor(PICTURE, tasks=["boxes"])


def test_the_limit_of_pixels(predictor: psf.Predictor) -> None:
    limit_pixels(PICTURE.shape[0] * PICTURE.shape[1] - 1)
    try:
        for form in (PICTURE, Image.fromarray(PICTURE), png(Image.fromarray(PICTURE))):
            with pytest.raises(ImageTooLarge, match=r"megapixels, the limit is .*raise INPUT\.PSF_MAX_PIXELS"):
                predictor(form)
    finally:
        limit_pixels(BIG)


def test_a_picture_is_a_copy(predictor: psf.Predictor) -> None:
    """A camera loop may use one buffer for all images."""
    image = noise()
    result = predictor(image)
    before = result.picture.copy()
    image[:] = 0
    assert (result.picture == before).all() and before.any()


def test_images_of_pillow_that_cannot_be_read(predictor: psf.Predictor, tmp_path: Path) -> None:
    path = tmp_path / "half.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    closed = Image.fromarray(noise())
    closed.close()
    with Image.open(path) as half:
        for image in (half, closed):
            with pytest.raises(UserError, match="cannot be read"):
                predictor(image)
