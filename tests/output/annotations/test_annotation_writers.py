"""What `annotation_writer` makes of its settings, and files of formats that have no reader here."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from psf.errors import UserError
from psf.output import ANNOTATION_KINDS, AnnotatedImage, PanopticOutput, annotation_writer

NAMES = ["ball", "tree & <leaf>", "ball"]
COLORS = [[200, 0, 16], [0, 255, 0], [1, 2, 3]]


class Classes(SimpleNamespace):
    """As Detectron2's metadata, which a test would have to remove again."""

    def get(self, key: str, default: Any = None) -> Any:
        return getattr(self, key, default)


METADATA = Classes(
    thing_classes=NAMES,
    stuff_classes=NAMES,
    thing_colors=COLORS,
    stuff_colors=COLORS,
    thing_dataset_id_to_contiguous_id={7: 0, 9: 1},
    stuff_dataset_id_to_contiguous_id={30: 2},
)


def result() -> PanopticOutput:
    ids = np.zeros((6, 9), np.int32)
    ids[1:4, 2:5] = 1
    segments = [{"id": 1, "category_id": 0, "isthing": True, "score": 0.5}]
    return PanopticOutput({"panoptic_seg": (torch.from_numpy(ids), segments)}, METADATA)


def image(name: str) -> AnnotatedImage:
    return AnnotatedImage(Path(f"{name}.png"), name, f"{name}.png", 1)


@pytest.mark.parametrize("kind", ANNOTATION_KINDS)
def test_every_kind_takes_all_settings(tmp_path: Path, kind: str) -> None:
    writer = annotation_writer(kind, tmp_path, shapes="polygons", image_prefix="http://a/", overwrite=True)
    assert writer.kind == kind and writer.folder == tmp_path / kind and writer.overwrite
    assert getattr(writer, "shapes", "polygons") == "polygons"
    assert hasattr(writer, "shapes") == (kind not in ("coco-panoptic", "yolo"))
    assert getattr(writer, "image_prefix", None) == ("http://a/" if kind == "label-studio" else None)


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'coco' is no format of annotation tools: expected one of coco-panoptic, "):
        annotation_writer("coco", tmp_path)
    with pytest.raises(UserError, match="shapes is 'boxes': expected one of masks, polygons"):
        annotation_writer("cvat", tmp_path, shapes="boxes")


def test_labels_of_cvat(tmp_path: Path) -> None:
    """labels.json has what CVAT's label constructor takes, and the labels that annotations.xml uses."""
    writer = annotation_writer("cvat", tmp_path)
    with writer.writing(METADATA):
        writer.add(image("a"), result())
    labels = json.loads((tmp_path / "cvat" / "labels.json").read_text())
    score = {"name": "score", "mutable": False, "input_type": "text", "default_value": "", "values": [""]}
    assert labels == [
        {"name": "ball (id 7)", "color": "#c80010", "type": "any", "attributes": [score]},
        {"name": "tree & <leaf>", "color": "#00ff00", "type": "any", "attributes": [score]},
        {"name": "ball (id 30)", "color": "#010203", "type": "any", "attributes": [score]},
    ]
    root = ElementTree.parse(tmp_path / "cvat" / "annotations.xml").getroot()
    described = [(one.findtext("name"), one.findtext("color")) for one in root.iter("label")]
    assert described == [(one["name"], one["color"]) for one in labels]
    assert [one.get("label") for one in root.iter("mask")] == ["ball (id 7)"]


def test_the_first_image_removes_an_earlier_panoptic_json(tmp_path: Path) -> None:
    writer = annotation_writer("coco-panoptic", tmp_path, overwrite=True)
    json_file = tmp_path / "coco-panoptic" / "panoptic.json"
    with writer.writing(METADATA):
        json_file.write_text("earlier")
        writer.add(image("a"), result())
        assert not json_file.exists()
        json_file.write_text("of another program")
        writer.add(image("b"), result())
        assert json_file.read_text() == "of another program"
    assert len(json.loads(json_file.read_text())["images"]) == 2
