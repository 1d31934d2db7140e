"""Panoptic files for the tests of this room, each written into a temporary folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from psf.data.shapes.dataset import load_written_split


@pytest.fixture(scope="session")
def tune_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the written split "tune"."""
    folder = tmp_path_factory.mktemp("cache") / "tune"
    load_written_split("tune", folder)
    return folder


def save_ids(path: Path, ids: np.ndarray) -> None:
    """Write a panoptic PNG: R + 256 G + 65536 B = id."""
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)).save(path)


@pytest.fixture
def make_sample(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Writes an image and its panoptic PNG; returns their dataset dict."""

    def make(ids: Any, segments: list[dict[str, Any]], image: np.ndarray | None = None) -> dict[str, Any]:
        ids = np.asarray(ids)
        save_ids(tmp_path / "gt.png", ids)
        pixels = np.zeros((*ids.shape, 3), np.uint8) if image is None else image
        Image.fromarray(pixels).save(tmp_path / "image.png")
        return {
            "file_name": str(tmp_path / "image.png"),
            "image_id": 7,
            "pan_seg_file_name": str(tmp_path / "gt.png"),
            "segments_info": segments,
        }

    return make
