"""Model files of a tiny model with random weights, and images for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from psf.engine import build_checkpointer
from psf.structures import ClassEntry
from tests.models import tiny_config, tiny_model

# The ids have gaps; stuff "sky" has a palette colour.
CLASSES = [
    ClassEntry(True, 0, 3, (250, 0, 0), "ball"),
    ClassEntry(True, 1, 5, (250, 250, 0), "box"),
    ClassEntry(True, 2, 30, (9, 8, 7), "traffic light # 2"),
    ClassEntry(False, 3, 7, (0, 0, 250), "sky"),
    ClassEntry(False, 4, 12, (0, 250, 0), "ground"),
    ClassEntry(False, 5, 9, (250, 250, 250), "cloud"),
    ClassEntry(False, 6, 40, (1, 2, 3), "Größe: 3"),
]
# Many segments of a model with random weights.
EASY = {"POST_PROCESSOR.THINGS.T_CNF": 0.01, "POST_PROCESSOR.STUFF.T_CNF": 0.01}
EASY |= {"POST_PROCESSOR.THINGS.T_KEEP": 0.0, "POST_PROCESSOR.STUFF.T_KEEP": 0.0, "POST_PROCESSOR.MASK_THRESHOLD": 0.8}
SMALL_IMAGES = {"INPUT__MIN_SIZE_TEST": 64, "INPUT__MAX_SIZE_TEST": 128}


def model_config(psf: Mapping[str, Any] = EASY, **keys: Any) -> CfgNode:
    """`tiny_config` with named classes, and small images."""
    return tiny_config(*_settings(psf), **{**SMALL_IMAGES, **keys})


def write_model_file(folder: Path, psf: Mapping[str, Any] = EASY, **keys: Any) -> Path:
    """Write model_final.pth as a training does; the weights are those of `tiny_model`."""
    folder.mkdir(parents=True, exist_ok=True)
    model = tiny_model(*_settings(psf), **{**SMALL_IMAGES, **keys})
    build_checkpointer(model_config(psf, **keys), model, str(folder)).save("model_final", iteration=41)
    return folder / "model_final.pth"


def _settings(psf: Mapping[str, Any]) -> tuple[dict[str, Any]]:
    return ({"CLASSES": [str(one) for one in CLASSES], **psf},)


def noise(height: int = 64, width: int = 96, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8, smooth enough to have segments."""
    small = np.random.default_rng(seed).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    return np.kron(small, np.ones((height // 4, width // 6, 1), np.uint8))
