"""YOLO's text format: where labels are, names, and damaged files."""

from __future__ import annotations

from pathlib import Path

import pytest

from psf.errors import UserError
from psf.tools.dataset_conversion.annotations.yolo import read_yolo
from tests.tools.dataset_conversion.label_files import convert, read_set, save_image

SQUARE = "1 0 0 0.5 0 0.5 0.5 0 0.5\n"


def write(root: Path, labels: str = SQUARE, names: str = "{0: car, 1: dog}") -> Path:
    """Images of 4 x 8 pixels: images/train/a.jpg with labels, images/val/sub/b.jpg without."""
    save_image(root / "images" / "train" / "a.jpg", (4, 8))
    save_image(root / "images" / "val" / "sub" / "b.jpg", (4, 8))
    (root / "labels" / "train").mkdir(parents=True, exist_ok=True)
    (root / "labels" / "train" / "a.txt").write_text(labels)
    (root / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: {names}\n")
    return root


@pytest.mark.parametrize("names", ["{0: car, 1: dog}", "[car, dog]"])
def test_the_whole_set_and_one_folder(tmp_path: Path, names: str) -> None:
    root = write(tmp_path / "set", SQUARE + "0 0.5 0.5 0.2 0.2\n", names)
    assert convert("--yolo", root, "--overlap", "error", "--output", tmp_path / "all") == 0
    found = read_set(tmp_path / "all", root)
    assert set(found) == {"images/train/a.jpg", "images/val/sub/b.jpg"}
    dog, empty = ["dog1"] * 4 + ["."] * 4, ["."] * 8
    assert found["images/train/a.jpg"].tolist() == [dog, dog, empty, empty]
    words = ("--yolo", root / "images" / "train", "--things", "car", "--overlap", "error")
    assert convert(*words, "--output", tmp_path / "one") == 0
    assert read_set(tmp_path / "one", root / "images" / "train")["a.jpg"][0, 0] == "dog"  # which is stuff now


def test_folders_above_the_set_do_not_count(tmp_path: Path) -> None:
    """A set below a folder that is called images, too: `images` there is not the folder of its images."""
    root = write(tmp_path / "images" / "set")
    save_image(root / "extra" / "c.jpg", (4, 8))
    assert [one.image["file_name"] for one in read_yolo(root).images] == ["images/train/a.jpg", "images/val/sub/b.jpg"]
    one = read_yolo(root / "images" / "train")
    assert len(one.regions(one.images[0])[0]) == 1


def test_a_set_that_is_itself_called_images(tmp_path: Path) -> None:
    root = tmp_path / "images"
    save_image(root / "train" / "a.jpg", (4, 8))
    (tmp_path / "labels" / "train").mkdir(parents=True)
    (tmp_path / "labels" / "train" / "a.txt").write_text(SQUARE)
    (root / "data.yaml").write_text("names: [car, dog]")
    source = read_yolo(root)
    assert len(source.regions(source.images[0])[0]) == 1


def test_notes_and_ids(tmp_path: Path) -> None:
    source = read_yolo(write(tmp_path, "0 0.5 0.5 0.2 0.2\n") / "data.yaml")
    assert [(one["id"], one["name"]) for one in source.categories] == [(1, "car"), (2, "dog")]
    assert source.regions(source.images[0]) == ([], {"lines without a polygon (boxes), dropped": 1})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("x 0 0 1 0 1 1\n", "expected a class and a polygon"),
        ("0 0 0 1 0 1\n", "expected a class and a polygon"),
        ("0 0 0 1 0 nan 1\n", "expected a class and a polygon"),
        ("-1 0 0 1 0 1 1\n", "expected a class and a polygon"),
        ("0 0 0 10 0 10 10\n", "expected shares of the width and height, from 0 to 1"),
        ("\n2 0 0 1 0 1 1\n", "line 2: found the class 2, expected one of [0, 1]"),
    ],
)
def test_wrong_lines(tmp_path: Path, labels: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        source = read_yolo(write(tmp_path, labels))
        source.regions(source.images[0])
    assert message in str(error.value) and "a.txt, line" in str(error.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("5", "`names` is 5, expected a list of names"),
        ("{a: car}", "expected a list of names, or a name for each number"),
        ("[car, car]", "two classes are called 'car'"),
        ("[car", "not a valid YAML file"),
        ("!!python/object/apply:os.system [ls]", "not a valid YAML file"),
        ("[]", "found no class"),
    ],
)
def test_wrong_names(tmp_path: Path, names: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        read_yolo(write(tmp_path, names=names))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_folders_without_a_set(tmp_path: Path) -> None:
    folder = tmp_path / "1" / "2" / "3" / "4" / "5" / "6"
    folder.mkdir(parents=True)
    with pytest.raises(UserError, match=r"found no data\.yaml in it or above it"):
        read_yolo(folder)
    (tmp_path / "1" / "data.yaml").write_text("names: [a]")
    with pytest.raises(UserError, match="found no image in a folder `images`"):
        read_yolo(tmp_path / "1")
    (tmp_path / "1" / "data.yaml").rename(tmp_path / "1" / "x.yaml")
    (tmp_path / "1" / "y.yaml").touch()
    with pytest.raises(UserError, match=r"has x\.yaml and y\.yaml"):
        read_yolo(tmp_path / "1")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("[" + "[]," * 70_000 + "]", "more than 200000 bytes, expected a data.yaml"),
        ("[" + ",".join(f"n{i}" for i in range(10_001)) + "]", "found 10001 classes, expected at most 10000"),
    ],
)
def test_huge_lists_of_names_are_refused(tmp_path: Path, names: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_yolo(write(tmp_path, names=names))
