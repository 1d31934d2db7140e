"""A class for each pixel in words, files and pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from detectron2.utils.video_visualizer import VideoVisualizer
from PIL import Image

from psf.output import FILE_KINDS, SemanticOutput, drawable_metadata, write_output

COLORS = [[200, 0, 0], [0, 200, 0], [0, 0, 200]]
NAMES = ["sky", "ball", "sea"]


def metadata(sea: int = 4) -> Metadata:
    """Ids in one row; `sea` is that class's own id in the dataset."""
    return Metadata(
        thing_classes=NAMES,
        stuff_classes=NAMES,
        stuff_colors=COLORS,
        thing_dataset_id_to_contiguous_id={7: 1},
        stuff_dataset_id_to_contiguous_id={30: 0, sea: 2},
    )


def predict(channels: list[list[int]], num_channels: int = 3) -> dict:
    """Scores that are highest at the named channel of each pixel."""
    return {"sem_seg": torch.nn.functional.one_hot(torch.tensor(channels), num_channels).permute(2, 0, 1) * 0.5}


def test_records_largest_first():
    output = SemanticOutput(predict([[2, 2, 1], [2, 2, 2]]), metadata())
    assert output.records() == [
        {"id": 4, "class": "sea", "category_id": 4, "contiguous_id": 2, "area": 5},
        {"id": 7, "class": "ball", "category_id": 7, "contiguous_id": 1, "area": 1},
    ]
    assert output.size == (2, 3) and output.mask(output.records()[1]).tolist() == [[False] * 2 + [True], [False] * 3]


def test_maps_of_classes_are_as_scores():
    scores = predict([[2, 2, 1], [0, 2, 2]])
    one, other = (SemanticOutput({"sem_seg": x}, metadata()) for x in (scores["sem_seg"], scores["sem_seg"].argmax(0)))
    assert one.records() == other.records()
    for output in (one.padded(2), other.padded(2)):
        assert output.size == (2, 5) and output.label_image()[:, 3:].tolist() == [[30, 30]] * 2  # class 0
        assert output.label_image()[:, :3].tolist() == one.label_image().tolist()


@pytest.mark.parametrize(("sea", "kind"), [(255, np.uint8), (256, np.uint16)])
def test_files(tmp_path: Path, sea: int, kind: type):
    output = SemanticOutput(predict([[2, 2, 1], [0, 2, 2]]), metadata(sea))
    image = np.full((2, 3, 3), 128, np.uint8)
    write_output(output, image, source=Path("a.png"), folder=tmp_path, name="a", kinds=FILE_KINDS)
    labels = np.array(Image.open(tmp_path / "a_semantic.png"))
    assert labels.dtype == kind and labels.tolist() == [[sea, sea, 7], [30, sea, sea]]
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["task"] == "semantic" and content["semantic_file_name"] == "a_semantic.png"
    assert {record["mask_file_name"] for record in content["classes"]} == {
        f"a_masks/{sea}_sea.png",
        "a_masks/7_ball.png",
        "a_masks/30_sky.png",
    }


@pytest.mark.parametrize("size", [(3, 2), (17, 40)])
def test_pictures_and_frames_are_in_the_colours_of_the_classes(size):
    image = np.full((*size, 3), 128, np.uint8)
    output = SemanticOutput(predict([[1] * size[1]] * size[0]), metadata())
    for drawn in (output.picture(image), output.frame(VideoVisualizer(metadata()), image)):
        assert drawn.shape == image.shape
        red, green, blue = np.median(drawn.reshape(-1, 3), axis=0)
        assert size == (3, 2) or (green > red + 50 and green > blue + 50)  # hardly a pixel of 3 x 2 is well inside


@pytest.mark.parametrize("sea", [65536, -1])
def test_an_id_that_the_png_cannot_hold(tmp_path: Path, sea: int):
    output = SemanticOutput(predict([[2, 2, 1]]), metadata(sea))
    image = np.full((1, 3, 3), 128, np.uint8)
    with pytest.raises(ValueError, match=rf"^class 'sea' has id {sea} .* 0 to 65535.*$"):
        write_output(output, image, source=Path("a.png"), folder=tmp_path, name="a", kinds=FILE_KINDS)
    assert not list(tmp_path.iterdir())
    assert output.records()[0]["id"] == sea


def test_a_class_named_like_a_formula_is_drawn():
    known = Metadata(**vars(metadata()) | {"stuff_classes": [r"$\frac{$"] * 3, "thing_classes": [r"$\frac{$"] * 3})
    image = np.full((60, 90, 3), 128, np.uint8)
    output = SemanticOutput(predict([[1] * 90] * 60), known)
    for drawn in (output.picture(image), output.frame(VideoVisualizer(drawable_metadata(known)), image)):
        assert np.abs(drawn.astype(int) - 128).max() > 20


def test_things_that_share_a_channel():
    separated = Metadata(
        thing_classes=["bat", "ball"],
        stuff_classes=["things", "sky"],
        thing_dataset_id_to_contiguous_id={5: 0, 7: 1},
        stuff_dataset_id_to_contiguous_id={0: 0, 30: 1},
    )
    things, sky = SemanticOutput(predict([[0, 0, 1]], 2), separated).records()
    assert (things["class"], things["id"], sky["class"], sky["id"]) == ("things", 0, "sky", 30)


def test_metadata_without_classes():
    with pytest.raises(ValueError, match="list no classes"):
        SemanticOutput(predict([[0]]), Metadata())
