"""Readers of pictures: panoptic PNGs, images, arrays, videos."""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from psf.data.images import is_turned, read_image
from psf.data.panoptic_labels import measure_panoptic_png, read_panoptic_labels
from psf.output import TimedFrame, VideoFile, VideoWriter
from tests.faults.reader import Reader, by_bytes, read_all

__all__ = ["PICTURES", "encoded"]

MAX_FRAMES = 50  # of a video; a damaged header may announce any number


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def prepare_panoptic_pngs() -> list[bytes]:
    ids = np.zeros((12, 16, 3), dtype=np.uint8)
    ids[:6, :8, 0], ids[6:, :, 1] = 1, 2
    images = [Image.fromarray(ids), Image.fromarray(ids).convert("RGBA"), Image.fromarray(ids).quantize(4)]
    return [*(encoded(image, "PNG") for image in images), cv2.imencode(".png", ids.astype(np.uint16))[1].tobytes()]


def read_panoptic_png() -> None:
    segments = [{"id": one, "category_id": 0, "isthing": True} for one in (1, 512, 3)]
    read_all(lambda: measure_panoptic_png("input.png"), lambda: read_panoptic_labels("input.png", segments))


IMAGES = {  # format -> modes
    "PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"),
    "JPEG": ("RGB", "L", "CMYK"),
    "TIFF": ("RGB", "RGBA", "L", "I;16", "F", "1", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("P", "L"),
    "BMP": ("RGB", "L"),
    "JPEG2000": ("RGB",),
    "TGA": ("RGB",),
    "ICO": ("RGBA",),
    "PPM": ("RGB",),
    "PCX": ("P",),
    "SGI": ("RGB",),
}


def image_inputs(*formats: str) -> Callable[[], list[bytes]]:
    """Small images of all modes of the formats; half of them are turned by EXIF, where the format has it."""

    def prepare() -> list[bytes]:
        pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 4), dtype=np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 6
        sound = []
        for kind in formats:
            options = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}
            for mode in IMAGES[kind]:
                picture = Image.fromarray(pixels)
                if mode in ("I;16", "F"):
                    picture = Image.new(mode, picture.size, 7)
                elif mode != "RGBA":
                    picture = picture.convert("RGB").convert(mode)
                sound += [encoded(picture, kind), encoded(picture, kind, **options)]
        return sound

    return prepare


def prepare_arrays() -> list[bytes]:
    sound = []
    for kind in ("u1", "<u2", ">f4", "f8", "?"):
        file = io.BytesIO()
        np.save(file, np.ones((5, 6, 4), dtype=kind))
        sound.append(file.getvalue())
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return [*sound, file.getvalue()]


def image_reader(suffix: str) -> Callable[[], None]:
    def read() -> None:
        path = f"input.{suffix}"
        if suffix == "npy":
            read_image(path, "BANDS")
        else:
            read_all(lambda: read_image(path, "BGR"), lambda: read_image(path, "BANDS"))
            is_turned(path)

    return read


def prepare_videos() -> list[bytes]:
    rng = np.random.default_rng(0)
    for suffix in ("mp4", "mkv", "avi", "ts"):
        with VideoWriter(Path(f"sound.{suffix}"), Fraction(10)) as writer:
            for number in range(4):
                writer.write(TimedFrame(rng.integers(0, 256, (16, 24, 3), dtype=np.uint8), number / 10))
    frames = [Image.fromarray(rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)) for _ in range(3)]
    animation = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    return [*(path.read_bytes() for path in sorted(Path().glob("sound.*"))), animation]


def read_video() -> None:
    with VideoFile("input.mp4") as video:
        for _ in islice(video, MAX_FRAMES):
            pass


def _image_reader(label: str, suffix: str, share: int, *formats: str) -> Reader:
    return Reader(
        f"images: {label}", share, (f"input.{suffix}",), image_inputs(*formats), by_bytes, image_reader(suffix)
    )


PICTURES = (
    Reader("panoptic PNG, 8 and 16 bits", 100, ("input.png",), prepare_panoptic_pngs, by_bytes, read_panoptic_png),
    _image_reader("JPEG", "jpg", 50, "JPEG"),
    _image_reader("PNG", "png", 50, "PNG"),
    _image_reader("TIFF", "tif", 50, "TIFF"),
    _image_reader("WebP, GIF", "webp", 50, "WEBP", "GIF"),
    _image_reader("BMP, JPEG 2000, TGA, ICO, PPM, PCX, SGI", "bmp", 40, *list(IMAGES)[5:]),
    Reader("arrays: .npy", 20, ("input.npy",), prepare_arrays, by_bytes, image_reader("npy")),
    Reader("videos: .mp4 .mkv .avi .ts .gif", 30, ("input.mp4",), prepare_videos, by_bytes, read_video),
)
