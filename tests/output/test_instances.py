"""Instances in words, files and pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from detectron2.structures import BitMasks, Instances
from detectron2.utils.video_visualizer import VideoVisualizer
from PIL import Image
from pycocotools import mask as coco_masks

from psf.output import FILE_KINDS, InstanceOutput, drawable_metadata, write_output

METADATA = Metadata(
    thing_classes=["sky", "ball", "sea"],
    thing_colors=[[200, 0, 0], [0, 200, 0], [0, 0, 200]],
    thing_dataset_id_to_contiguous_id={7: 1, 9: 2},
)


def predict(masks: np.ndarray, classes: list[int], scores: list[float]) -> dict:
    found = Instances(masks.shape[1:])
    found.pred_masks = torch.from_numpy(masks)
    found.pred_classes, found.scores = torch.tensor(classes, dtype=torch.int64), torch.tensor(scores)
    found.pred_boxes = BitMasks(found.pred_masks).get_bounding_boxes()
    return {"instances": found}


def two() -> np.ndarray:
    """Two masks that overlap in one pixel, (1, 2)."""
    masks = np.zeros((2, 4, 6), bool)
    masks[0, :2, 1:3] = True
    masks[1, 1, 2:5] = True
    return masks


def test_records_by_hand():
    output = InstanceOutput(predict(two(), [2, 1], [0.75, 0.5]), METADATA)
    sea, ball = output.records()
    encoded = sea.pop("segmentation")
    assert sea == {
        "id": 1,
        "class": "sea",
        "category_id": 9,
        "contiguous_id": 2,
        "score": 0.75,
        "area": 4,
        "bbox": [1, 0, 2, 2],
    }
    assert np.array_equal(coco_masks.decode(encoded), two()[0])
    assert (ball["class"], ball["category_id"], ball["area"], ball["bbox"]) == ("ball", 7, 3, [2, 1, 3, 1])
    assert np.array_equal(output.mask(ball), two()[1])


def test_files(tmp_path: Path):
    output = InstanceOutput(predict(two(), [2, 1], [0.75, 0.5]), METADATA)
    image = np.full((4, 6, 3), 128, np.uint8)
    write_output(output, image, source=Path("a.png"), folder=tmp_path, name="a", kinds=FILE_KINDS)
    assert sorted(file.name for file in tmp_path.glob("a*")) == ["a.jpg", "a.json", "a_masks"]  # no PNG: masks overlap
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["task"] == "instance" and len(content["instances"]) == 2
    for record, mask in zip(content["instances"], two(), strict=True):
        assert np.array_equal(np.array(Image.open(tmp_path / record["mask_file_name"])), mask)


@pytest.mark.parametrize("size", [(3, 2), (17, 40)])
def test_pictures_and_frames_show_them(size):
    image = np.full((*size, 3), 128, np.uint8)
    output = InstanceOutput(predict(np.ones((1, *size), bool), [1], [0.9]), METADATA)
    for drawn in (output.picture(image), output.frame(VideoVisualizer(METADATA), image)):
        assert drawn.shape == image.shape and np.abs(drawn.astype(int) - 128).max() > 20
    nothing = InstanceOutput(predict(np.ones((0, *size), bool), [], []), METADATA)
    assert np.array_equal(nothing.picture(image), image) and nothing.records() == []


def test_a_class_named_like_a_formula_is_drawn():
    known = Metadata(**vars(METADATA) | {"thing_classes": ["sky", r"$\frac{$", "sea"]})
    image = np.full((60, 90, 3), 128, np.uint8)
    output = InstanceOutput(predict(np.ones((1, 60, 90), bool), [1], [0.9]), known)
    for drawn in (output.picture(image), output.frame(VideoVisualizer(drawable_metadata(known)), image)):
        assert np.abs(drawn.astype(int) - 128).max() > 20


def test_a_class_that_the_dataset_does_not_know():
    with pytest.raises(ValueError, match=r"class 0 as a thing.*metadata has \[1, 2\]; DATASETS\.TEST"):
        InstanceOutput(predict(two(), [0, 1], [0.75, 0.5]), METADATA).records()
