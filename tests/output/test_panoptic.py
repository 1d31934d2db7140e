"""A panoptic result in words, files and pictures: what the model said, in the dataset's words."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.utils.video_visualizer import VideoVisualizer
from panopticapi.utils import rgb2id
from PIL import Image

from psf.errors import UserError
from psf.output import FILE_KINDS, PanopticOutput, check_output, drawable_metadata, write_output


def visible(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir() if not file.name.startswith(".")}


NAMES = {"picture": "a.jpg", "png": "a_panoptic.png", "json": "a.json", "masks": "a_masks"}
COLORS = [[200, 0, 0], [0, 200, 0], [0, 0, 200]]
JOINT = SimpleNamespace(  # ids of all classes in one row
    thing_classes=["sky", "ball", "sea"],
    stuff_classes=["sky", "ball", "sea"],
    thing_colors=COLORS,
    stuff_colors=COLORS,
    thing_dataset_id_to_contiguous_id={7: 1},
    stuff_dataset_id_to_contiguous_id={30: 0, 4: 2},
)
SEPARATED = SimpleNamespace(  # things and stuff each counted from 0, as in coco_2017_val_panoptic_separated
    thing_classes=["bat", "ball"],
    stuff_classes=["things", "sky"],
    thing_colors=COLORS,
    stuff_colors=COLORS,
    thing_dataset_id_to_contiguous_id={5: 0, 7: 1},
    stuff_dataset_id_to_contiguous_id={0: 0, 30: 1},
)


def predict(id_map: np.ndarray, *segments: tuple[int, int, bool]) -> dict:
    """A prediction whose segments are given as (id, category, is_thing)."""
    infos = [
        {"id": i, "category_id": category, "isthing": is_thing, "score": 0.5, "area": int((id_map == i).sum())}
        for i, category, is_thing in segments
    ]
    return {"panoptic_seg": (torch.from_numpy(id_map), infos)}


def test_area_and_box_by_hand():
    ids = np.array([[0, 3, 3, 0, 0], [1, 1, 3, 0, 3], [1, 0, 0, 0, 0]], np.int32)
    output = PanopticOutput(predict(ids, (1, 2, False), (3, 1, True)), JOINT)
    stuff, thing = output.records()
    # Segment 1: rows 1..2, columns 0..1; segment 3, in two pieces: rows 0..1, columns 1..4.
    assert (stuff["area"], stuff["bbox"]) == (3, [0, 1, 2, 2])
    assert (thing["area"], thing["bbox"]) == (4, [1, 0, 4, 2])
    assert (stuff["class"], stuff["category_id"], stuff["contiguous_id"], stuff["isthing"]) == ("sea", 4, 2, False)
    assert (thing["class"], thing["category_id"], thing["contiguous_id"], thing["isthing"]) == ("ball", 7, 1, True)
    assert np.array_equal(output.mask(thing), ids == 3) and output.size == (3, 5)


def test_overlapping_ids_of_things_and_stuff_are_kept_apart():
    ids = np.array([[1, 2]], np.int32)
    stuff, thing = PanopticOutput(predict(ids, (1, 1, False), (2, 1, True)), SEPARATED).records()
    assert (stuff["class"], stuff["category_id"]) == ("sky", 30)
    assert (thing["class"], thing["category_id"]) == ("ball", 7)


def test_files_hold_ids_beyond_a_byte_and_plain_json(tmp_path: Path):
    ids = np.zeros((40, 50), np.int32)
    ids[:20], ids[25:35, 5:30] = 66_000, 300
    prediction = predict(ids, (66_000, 0, False), (300, 1, True))
    before = copy.deepcopy(prediction["panoptic_seg"][1])
    image = np.full((40, 50, 3), 128, np.uint8)
    output = PanopticOutput(prediction, JOINT)
    write_output(output, image, source=Path("in/a.png"), folder=tmp_path, name="a.b", kinds=NAMES)

    assert visible(tmp_path) == {name.replace("a", "a.b", 1) for name in NAMES.values()}
    assert np.array_equal(rgb2id(np.array(Image.open(tmp_path / "a.b_panoptic.png"))), ids)
    record = json.loads((tmp_path / "a.b.json").read_text())
    assert [segment["id"] for segment in record["segments_info"]] == [66_000, 300]
    assert record["segments_info"][1]["area"] == 250 and record["file_name"] == str(Path("in/a.png"))
    assert [segment["mask_file_name"] for segment in record["segments_info"]] == [
        "a.b_masks/66000_sky.png",
        "a.b_masks/300_ball.png",
    ]
    for segment in record["segments_info"]:
        mask = np.array(Image.open(tmp_path / segment["mask_file_name"]))
        assert np.array_equal(mask, ids == segment["id"])
    assert prediction["panoptic_seg"][1] == before  # drawing has changed nothing: areas are still whole numbers
    assert all(isinstance(info["area"], int) for info in prediction["panoptic_seg"][1])


@pytest.mark.parametrize("kind", FILE_KINDS)
def test_only_what_is_asked_for_is_written(tmp_path: Path, kind: str):
    output = PanopticOutput(predict(np.ones((4, 5), np.int32), (1, 1, True)), JOINT)
    write_output(output, np.zeros((4, 5, 3), np.uint8), source=Path("a.png"), folder=tmp_path, name="a", kinds=[kind])
    assert visible(tmp_path) == {NAMES[kind]}


def write_masks_of(name: str, folder: Path) -> list[str]:
    """The names of mask files, where an image shows a thing of the class `name`."""
    metadata = SimpleNamespace(thing_classes=[name], thing_dataset_id_to_contiguous_id={7: 0})
    output = PanopticOutput(predict(np.ones((4, 5), np.int32), (1, 0, True)), metadata)
    image = np.zeros((4, 5, 3), np.uint8)
    write_output(output, image, source=Path("a.png"), folder=folder, name="a", kinds=["masks"])
    return sorted(visible(folder / "a_masks"))


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("../road/sign", "1__road_sign.png"),
        (".hidden\\class", "1__hidden_class.png"),
        ("汽车", "1_汽车.png"),
        ("x" * 300, f"1_{'x' * 60}.png"),
        ("\U00020000" * 300, "1_" + "\U00020000" * 60 + ".png"),  # 4 bytes each
        ("", "1_.png"),
    ],
)
def test_a_class_name_becomes_a_file_name(tmp_path: Path, name: str, file: str):
    assert write_masks_of(name, tmp_path) == [file]


def test_masks_of_an_earlier_run_go_and_nothing_else(tmp_path: Path):
    write_masks_of("汽车" * 100, tmp_path)
    others = ["notes.txt", "ball.png", "1_ball.jpg", "1 ball.png", "x1_ball.png"]
    for name in others:
        (tmp_path / "a_masks" / name).touch()
    (tmp_path / "a_masks" / "4_folder.png").mkdir()
    assert write_masks_of("ball", tmp_path) == sorted([*others, "1_ball.png", "4_folder.png"])


@pytest.mark.parametrize("kind", FILE_KINDS)
def test_files_that_psf_has_not_written_stay(tmp_path: Path, kind: str):
    """Nor does anything else appear then. Files of an earlier run are replaced, unless somebody has changed them."""
    image = np.zeros((4, 5, 3), np.uint8)
    write = {"source": Path("a.png"), "folder": tmp_path, "name": "a"}
    output = PanopticOutput(predict(np.ones((4, 5), np.int32), (1, 1, True)), JOINT)
    file = tmp_path / {**NAMES, "masks": "a_masks/7_left.png"}[kind]
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"somebody's")
    before = {path for path in tmp_path.rglob("*")}
    with pytest.raises(UserError, match=rf"{file.name} exists, and psf has not written it.*--overwrite"):
        write_output(output, image, **write, kinds=FILE_KINDS)
    assert file.read_bytes() == b"somebody's" and {path for path in tmp_path.rglob("*")} == before

    check_output(tmp_path, "a", source=Path("a.png"), task="panoptic", kinds=FILE_KINDS, overwrite=True)
    with pytest.raises(UserError, match="exists"):  # the check alone does not make it psf's
        write_output(output, image, **write, kinds=FILE_KINDS)
    write_output(output, image, **write, kinds=FILE_KINDS, overwrite=True)
    write_output(output, image, **write, kinds=FILE_KINDS)
    assert not file.exists() or file.read_bytes() != b"somebody's"
    [own] = tmp_path.glob({**NAMES, "masks": "a_masks/*.png"}[kind])
    own.write_bytes(own.read_bytes() + b" ")
    with pytest.raises(UserError, match=rf"{own.name} exists, .* or it was changed since"):
        write_output(output, image, **write, kinds=FILE_KINDS)


@pytest.mark.parametrize("is_thing", [True, False])
@pytest.mark.parametrize("name", [r"$\frac{$", "$x$", "a $", r"a \$ b"])
def test_a_class_name_is_drawn_letter_by_letter(name: str, is_thing: bool):
    """Detectron2's visualizer of videos, which has matplotlib read formulas, is given other names than pictures."""
    classes = {"thing_classes": [name], "stuff_classes": [name], "thing_colors": COLORS, "stuff_colors": COLORS}
    prediction = predict(np.ones((60, 200), np.int32), (1, 0, is_thing))
    output = PanopticOutput(prediction, SimpleNamespace(**classes))
    [region] = output.regions()
    assert region.labels == ([f"{name} 50%", name] if is_thing else [name])
    image = np.zeros((60, 200, 3), np.uint8)
    output.frame(VideoVisualizer(drawable_metadata(output.metadata)), image)  # no mistake in a formula


def test_what_cannot_be_drawn_leaves_no_file(tmp_path: Path, monkeypatch):
    def refuse(*args):
        raise ValueError("cannot be drawn")

    monkeypatch.setattr(PanopticOutput, "regions", refuse)
    output = PanopticOutput(predict(np.ones((4, 5), np.int32), (1, 1, True)), JOINT)
    image = np.zeros((4, 5, 3), np.uint8)
    with pytest.raises(ValueError, match="cannot be drawn"):
        write_output(output, image, source=Path("a.png"), folder=tmp_path, name="a", kinds=FILE_KINDS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [(1, 65_501), (65_499, 30)], ids=["the image", "with the legend"])
def test_a_picture_that_is_too_large_for_a_jpeg(tmp_path: Path, size: tuple[int, int]):
    """Pillow's error looks like that of a full disk, which ends a run."""
    output = PanopticOutput(predict(np.ones(size, np.int32), (1, 1, True)), JOINT)
    image = np.zeros((*size, 3), np.uint8)
    with pytest.raises(UserError, match=r"a\.jpg, .* has more than 65,500 pixels a side .*: use --save png,json"):
        write_output(output, image, source=Path("a.png"), folder=tmp_path, name="a", kinds=FILE_KINDS)
    assert not list(tmp_path.iterdir())
    write_output(output, image, source=Path("a.png"), folder=tmp_path, name="a", kinds=("png", "json"))
    assert visible(tmp_path) == {"a_panoptic.png", "a.json"}


def test_the_longest_picture(tmp_path: Path):
    output = PanopticOutput(predict(np.ones((1, 65_500), np.int32), (1, 1, True)), JOINT)
    image = np.zeros((1, 65_500, 3), np.uint8)
    write_output(output, image, source=Path("a.png"), folder=tmp_path, name="a", kinds=["picture"])
    assert visible(tmp_path) == {"a.jpg"}


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (17, 400), (400, 17)])
@pytest.mark.parametrize("is_thing", [True, False])
def test_drawing_keeps_the_size(size, is_thing):
    image = np.full((*size, 3), 128, np.uint8)
    prediction = predict(np.ones(size, np.int32), (1, 1 if is_thing else 0, is_thing))
    assert PanopticOutput(prediction, JOINT).picture(image).shape == (*size, 3)


def test_void_alone_draws_the_image_itself():
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    output = PanopticOutput(predict(np.zeros((30, 40), np.int32)), JOINT)
    assert np.array_equal(output.picture(image), image)
    assert output.records() == []


def test_metadata_of_things_alone():
    metadata = SimpleNamespace(thing_classes=["ball"], thing_dataset_id_to_contiguous_id={7: 0})
    ids = np.array([[1, 2]], np.int32)
    [thing] = PanopticOutput(predict(ids, (1, 0, True)), metadata).records()
    assert (thing["class"], thing["category_id"]) == ("ball", 7)
    with pytest.raises(ValueError, match=r"class 0 as stuff.* DATASETS\.TEST"):
        PanopticOutput(predict(ids, (1, 0, True), (2, 0, False)), metadata).records()
