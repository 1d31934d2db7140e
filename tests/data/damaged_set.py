"""The mini set with one fault of each kind, and what the validator must say of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from psf.tools.dataset_validation.report import ValidationReport
from psf.tools.dataset_validation.validation import validate_panoptic
from tests.mini_set import write_mini_set


def places(root: Path) -> tuple[str, str, str]:
    """What `validate_panoptic` takes, of a set like the mini set."""
    return str(root / "panoptic.json"), str(root / "panoptic"), str(root / "images")


def validate(root: Path, **options: Any) -> ValidationReport:
    return validate_panoptic(*places(root), **options)


def change(root: Path, edit: Any) -> None:
    """Apply edit(content) to the set's JSON."""
    path = root / "panoptic.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def segments(content: dict[str, Any], image: int) -> list[dict[str, Any]]:
    """segments_info of an image of the mini set, by position."""
    return content["annotations"][image]["segments_info"]


def add_ball(content: dict[str, Any], **keys: int) -> None:
    """List a ball in image 1, where none is."""
    segments(content, 1).append({**segments(content, 1)[0], "category_id": 3, **keys})


def write_damaged(root: Path, kind: str) -> None:
    """The mini set with a fault of one kind (tests/tools/dataset_validation/test_validation.py has them all)."""
    write_mini_set(root)
    if kind in JSON_EDITS:
        change(root, JSON_EDITS[kind])
    else:
        FILE_EDITS[kind](root)


def _resize(path: Path, size: tuple[int, int]) -> None:
    Image.open(path).resize(size, Image.Resampling.NEAREST).save(path)


def _paint_unknown(root: Path) -> None:
    path = root / "panoptic" / "0.png"
    pixels = np.asarray(Image.open(path)).copy()
    pixels[:2, :3] = (77, 0, 0)  # 6 pixels of what was segment 1
    Image.fromarray(pixels).save(path)


JSON_EDITS = {
    "empty list": lambda x: x["annotations"].clear(),
    "incomplete entry": lambda x: segments(x, 0)[0].pop("iscrowd"),
    "wrong value": lambda x: x["categories"][0].update(isthing="0"),
    "duplicate category id": lambda x: x["categories"].append(dict(x["categories"][0])),
    "duplicate image id": lambda x: x["images"].append({**x["images"][0], "height": 7}),
    "several annotations of an image": lambda x: x["annotations"].append(x["annotations"][0]),
    "annotation of an unknown image": lambda x: x["images"].pop(0),
    "file listed again": lambda x: x["images"].append({**x["images"][0], "id": 99}),
    "segment of the JSON, not in the PNG": lambda x: add_ball(x, id=5),
    "empty segment": lambda x: add_ball(x, id=5, area=0),
    "segment id out of range": lambda x: add_ball(x, id=0),
    "duplicate segment id": lambda x: segments(x, 0).append(segments(x, 0)[1]),
    "unknown category": lambda x: segments(x, 0)[1].update(category_id=99),
    "stuff class in several segments": lambda x: segments(x, 0)[1].update(category_id=7),
    "wrong area": lambda x: segments(x, 2)[0].update(area=1),
    "wrong box": lambda x: segments(x, 2)[0].update(bbox=[0, 0, 1, 1]),
    "PNG of another image?": lambda x: [one.update(area=7, bbox=[0, 0, 1, 1]) for one in segments(x, 2)[:3]],
    "size mismatch": lambda x: x["images"][1].update(height=50),
}  # fmt: skip
FILE_EDITS = {
    "missing image": lambda root: (root / "images" / "3.png").unlink(),
    "unreadable image": lambda root: (root / "images" / "3.png").write_bytes(b"no image"),
    "missing PNG": lambda root: (root / "panoptic" / "3.png").unlink(),
    "unreadable PNG": lambda root: Image.new("L", (30, 30)).save(root / "panoptic" / "3.png"),
    "id in the PNG, not in the JSON": _paint_unknown,
    "size mismatch of files": lambda root: _resize(root / "images" / "3.png", (31, 30)),
}
