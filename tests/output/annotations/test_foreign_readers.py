"""The files as the formats' own libraries read them, where these are installed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import Metadata, MetadataCatalog
from PIL import Image

from psf.output import AnnotatedImage, PanopticOutput, annotation_writer

NAMES = ["ball", "box", "sky & <sea>"]


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    name = "psf_test_foreign_readers"
    ids = {"thing_dataset_id_to_contiguous_id": {7: 0, 9: 1}, "stuff_dataset_id_to_contiguous_id": {30: 2}}
    yield MetadataCatalog.get(name).set(thing_classes=NAMES, stuff_classes=NAMES, **ids)
    MetadataCatalog.remove(name)


@pytest.fixture
def ids() -> np.ndarray:
    """(H, W): a ball with a hole, a box in two parts, sky, and void."""
    ids = np.zeros((60, 90), np.int32)
    ids[:30] = 3
    ids[20:50, 10:40] = 1
    ids[30:36, 20:28] = 0
    ids[5:15, 60:80] = ids[40:55, 70:85] = 2
    return ids


@pytest.fixture
def written(tmp_path: Path, metadata: Metadata, ids: np.ndarray) -> Path:
    """A folder with a.png and the files of CVAT, Label Studio and YOLO."""
    image = tmp_path / "a.png"
    Image.fromarray(np.full((*ids.shape, 3), 90, np.uint8)).save(image)
    segments = [{"id": i, "category_id": i - 1, "isthing": i < 3, "score": 0.5} for i in (1, 2, 3)]
    output = PanopticOutput({"panoptic_seg": (torch.from_numpy(ids), segments)}, metadata)
    for kind in ("cvat", "label-studio", "yolo"):
        writer = annotation_writer(kind, tmp_path)
        with writer.writing(metadata):
            writer.add(AnnotatedImage(image, "a", "a.png", 1), output)
    return tmp_path


def test_label_studio(written: Path, ids: np.ndarray) -> None:
    brush = pytest.importorskip("label_studio_converter.brush")
    (task,) = json.loads((written / "label-studio" / "tasks.json").read_text())
    for number, region in enumerate(task["predictions"][0]["result"], 1):
        mask = brush.decode_rle(region["value"]["rle"]).reshape(*ids.shape, 4)[..., 3] > 0
        assert (mask == (ids == number)).all() and region["value"]["brushlabels"] == [NAMES[number - 1]]


def test_cvat(written: Path, ids: np.ndarray) -> None:
    datumaro = pytest.importorskip("datumaro")
    (written / "set" / "images").mkdir(parents=True)
    shutil.copy(written / "cvat" / "annotations.xml", written / "set")
    shutil.copy(written / "a.png", written / "set" / "images")
    (item,) = datumaro.Dataset.import_from(str(written / "set"), "cvat")
    assert [one.attributes["score"] for one in item.annotations] == ["0.500"] * 3
    for number, annotation in enumerate(item.annotations, 1):
        assert (np.asarray(annotation.image, bool) == (ids == number)).all() and annotation.label == number - 1


def test_yolo(written: Path, ids: np.ndarray) -> None:
    supervision = pytest.importorskip("supervision")
    folder = written / "yolo"
    places = (str(folder / "images" / "train"), str(folder / "labels" / "train"), str(folder / "data.yaml"))
    dataset = supervision.DetectionDataset.from_yolo(*places, force_masks=True)
    ((_, _, found),) = dataset
    assert dataset.classes == NAMES[:2] and found.class_id.tolist() == [0, 1]
    for number, mask in enumerate(found.mask, 1):
        expected = ids == number
        assert (mask & expected).sum() / (mask | expected).sum() > 0.8  # it draws the lines between parts, too
