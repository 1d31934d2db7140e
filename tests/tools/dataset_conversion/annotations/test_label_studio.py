"""Label Studio's JSON: which annotation counts, how images are found, and damaged files."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from psf.errors import UserError
from psf.output.annotations import encode_brush
from psf.tools.dataset_conversion.annotations.label_studio import read_label_studio
from tests.tools.dataset_conversion.label_files import convert, read_set, save_image

SIZE = (4, 8)


def region(kind: str, label: str, **value: Any) -> dict[str, Any]:
    size = {"original_height": SIZE[0], "original_width": SIZE[1], "image_rotation": 0}
    return {"id": "x", "type": kind, "from_name": "a", "to_name": "b", **size, "value": {**value, kind: [label]}}


def brush(label: str, rows: slice, columns: slice) -> dict[str, Any]:
    mask = np.zeros(SIZE, bool)
    mask[rows, columns] = True
    return region("brushlabels", label, format="rle", rle=encode_brush(mask))


def task(*regions: dict[str, Any], image: str = "/data/local-files/?d=photos/a.jpg") -> dict[str, Any]:
    return {"id": 5, "data": {"caption": "x", "image": image}, "annotations": [{"result": list(regions)}]}


def write(folder: Path, *tasks: dict[str, Any]) -> Path:
    save_image(folder / "a.jpg", SIZE)
    (folder / "export.json").write_text(json.dumps(tasks))
    return folder / "export.json"


def test_all_kinds_of_regions(tmp_path: Path) -> None:
    regions = [
        brush("sky", slice(0, 2), slice(0, 8)),
        region("polygonlabels", "car", points=[[0, 50], [25, 50], [25, 100], [0, 100]]),
        region("rectanglelabels", "car", x=50, y=50, width=25, height=25, rotation=0),
        region("keypointlabels", "car", x=1, y=1),
        {"type": "choices", "value": {"choices": ["x"]}},
    ]
    words = ("--label-studio", write(tmp_path, task(*regions)), "--things", "car", "--overlap", "error")
    assert convert(*words, "--output", tmp_path / "set") == 0
    assert read_set(tmp_path / "set", tmp_path)["a.jpg"].tolist() == [
        ["sky"] * 8,
        ["sky"] * 8,
        [*["car1"] * 2, *"..", *["car2"] * 2, *".."],
        [*["car1"] * 2, *"......"],
    ]


def test_a_turned_rectangle(tmp_path: Path) -> None:
    """By 90 degrees around its upper left corner: to the left of it. In pixels, not in percent."""
    turned = region("rectanglelabels", "car", x=50, y=0, width=25, height=75, rotation=90)
    source = read_label_studio(write(tmp_path, task(turned)), image_root=tmp_path)
    from pycocotools import mask as coco_masks

    (found,), _ = source.regions(source.images[0])
    assert coco_masks.toBbox(found.rle).tolist() == [1, 0, 3, 2]


@pytest.mark.parametrize(
    ("address", "file"),
    [
        ("/data/local-files/?d=photos/in%20town/a.jpg", "in town/a.jpg"),
        ("https://host/x/y/in%20town/a.jpg?key=1", "in town/a.jpg"),
        ("/data/upload/3/0123abcd-b.jpg", "b.jpg"),
        ("s3://bucket/photos/b.jpg", "b.jpg"),
        ("C:\\photos\\b.jpg", "b.jpg"),
        ("/data/local-files/?d=../../b.jpg", "b.jpg"),
        ("https://host/missing.jpg", "missing.jpg"),
    ],
)
def test_images_are_found(tmp_path: Path, address: str, file: str) -> None:
    save_image(tmp_path / "in town" / "a.jpg", SIZE)
    save_image(tmp_path / "b.jpg", SIZE)
    source = read_label_studio(
        write(tmp_path, task(brush("car", slice(0, 1), slice(0, 1)), image=address)), image_root=tmp_path
    )
    assert source.images[0].image["file_name"] == file
    missing = [note for note in source.notes if "images that are missing" in note]
    assert bool(missing) == (file == "missing.jpg")


def test_the_last_annotation_counts(tmp_path: Path) -> None:
    first = task(brush("old", slice(0, 1), slice(0, 1)))
    first["annotations"] += [
        {"result": [brush("new", slice(0, 1), slice(0, 2))]},
        {"result": [brush("skipped", slice(0, 1), slice(0, 1))], "was_cancelled": True},
    ]
    bare = {"data": {"image": "b.jpg"}, "annotations": [], "predictions": [{"result": []}]}
    source = read_label_studio(write(tmp_path, first, bare), image_root=tmp_path)
    assert [one["name"] for one in source.categories] == ["new"] and len(source.images) == 1
    assert source.notes["tasks with several annotations; the last one was used"] == 1
    assert source.notes["tasks without an annotation, skipped"] == 1


def test_tasks_without_regions(tmp_path: Path) -> None:
    """The file of the image has its size; without it the task is skipped."""
    tasks = [
        task(brush("car", slice(0, 1), slice(0, 1))),
        task(image="/data/upload/1/b.jpg"),
        task(image="/data/upload/1/c.jpg"),
    ]
    save_image(tmp_path / "b.jpg", (5, 7))
    source = read_label_studio(write(tmp_path, *tasks), image_root=tmp_path)
    assert [(one.image["file_name"], one.image["height"]) for one in source.images] == [("a.jpg", 4), ("b.jpg", 5)]
    assert source.notes[f"tasks without a region whose image is not below {tmp_path}, skipped"] == 1


GOOD = brush("car", slice(0, 1), slice(0, 1))


def changed(**keys: Any) -> dict[str, Any]:
    return {**copy.deepcopy(GOOD), **keys}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (changed(original_width=0), "'original_width' is 0, expected a whole number of pixels"),
        (changed(original_width=999_999, original_height=999_999), "megapixels"),
        (changed(image_rotation=90), "the image was turned"),
        (changed(value={"brushlabels": ["a", "b"], "rle": []}), "expected one label"),
        (changed(value={"brushlabels": ["car"]}), "'rle' is missing"),
        (changed(value=3), "'value' is 3, expected an object"),
        (region("polygonlabels", "car", points=[[1, 2], [3]]), "expected [[x, y], ...] of finite numbers"),
        (region("rectanglelabels", "car", x=1, y=2, width=3), "expected finite numbers for x, y, width, height"),
    ],
)
def test_wrong_regions(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        read_label_studio(write(tmp_path, task(wrong)), image_root=tmp_path)
    assert message in str(error.value) and "export.json: task 5, region 1" in str(error.value)


def test_a_damaged_mask_names_its_region(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, task(changed(value={"brushlabels": ["car"], "rle": [1, 2, 3]})))
    assert convert("--label-studio", path, "--overlap", "error", "--output", tmp_path / "set") == 2
    assert "task 5, region 1: its 'rle' is damaged" in (error := capsys.readouterr().err) and error.count("error") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "expected a list of tasks"),
        ([1], "expected a list of tasks"),
        ([], "found no task with an annotation or a prediction"),
        ([{"data": {"text": "x"}, "annotations": []}], "expected the address of an image"),
        ([{"data": {"image": "http://[x/a.jpg"}}], "expected the address of an image"),
        ([{"data": {"image": "a.jpg"}, "annotations": [3]}], "expected an annotation"),
        ([{"data": {"image": "a.jpg"}, "annotations": {}}], "'annotations' is {}, expected a list"),
        ([task(GOOD), task(GOOD)], "lists the image 'a.jpg' twice"),
    ],
)
def test_wrong_files(tmp_path: Path, content: Any, message: str) -> None:
    (tmp_path / "export.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        read_label_studio(tmp_path / "export.json", image_root=tmp_path)
    assert message in str(error.value)
