"""The preparation scripts on small trees in the official layouts, made here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from psf.data import load_panoptic_json
from psf.data.builtin import ade20k_paths, cityscapes_paths
from psf.data.panoptic_labels import read_panoptic_labels
from psf.tools.dataset_conversion.scenes import prepare_ade20k, prepare_cityscapes
from psf.tools.dataset_validation.validation import validate_panoptic
from tests.data.conftest import save_ids


def run_script(repository: Path, name: str, root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DETECTRON2_DATASETS": str(root), "PYTHONPATH": str(repository)}
    command = [sys.executable, str(repository / "datasets" / name), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def category_map(paths) -> tuple[np.ndarray, dict[int, int], list[dict]]:
    """Of the first image: (H, W) dataset ids of categories, -1 is void; and the segments."""
    content = json.loads(paths.panoptic_json.read_text())
    ids = [category["id"] for category in content["categories"]]
    first = load_panoptic_json(*(str(paths[i]) for i in (1, 2, 0)))[0]
    labels, segments = read_panoptic_labels(first["pan_seg_file_name"], first["segments_info"])
    table = np.array([-1, *(ids[segment["category_id"]] for segment in segments)])
    return table[labels], labels, segments


def is_clean(paths) -> bool:
    return validate_panoptic(str(paths.panoptic_json), str(paths.panoptic_root), str(paths.image_root)).is_clean


# ------------------------------------------------------------------ ADE20K


@pytest.fixture
def ade20k(tmp_path: Path) -> Path:
    """One image of 8 x 12 in each split: sky over grass, two beds of which one is drawn, a window over the border."""
    root = tmp_path / "ADEChallengeData2016"
    semantic = np.full((8, 12), 3, np.uint8)  # sky
    semantic[4:] = 10  # grass
    semantic[4:6, :6] = 8  # beds
    semantic[0, 0] = 0
    instances = np.zeros((8, 12, 3), np.uint8)
    instances[4:6, :3] = (1, 1, 0)  # a bed: thing class 1, instance 1
    instances[2:6, 8:10] = (2, 2, 0)  # windows: thing class 2
    instances[2:6, 10:12] = (2, 3, 0)
    for split, part in (("train", "training"), ("val", "validation")):
        name = f"ADE_{split}_00000001"
        for folder, pixels, end in (
            ("images", np.zeros((8, 12, 3), np.uint8), "jpg"),
            ("annotations", semantic, "png"),
            ("annotations_instance", instances, "png"),
        ):
            (root / folder / part).mkdir(parents=True)
            Image.fromarray(pixels).save(root / folder / part / f"{name}.{end}")
    (root / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tStuff\tName\n")
    return root


def test_ade20k(ade20k):
    notes = prepare_ade20k(ade20k, "train", workers=1)
    assert notes == {"images": 1, "segments": 5}
    paths = ade20k_paths(ade20k, "train")
    drawn, labels, segments = category_map(paths)
    expected = np.full((8, 12), 2)  # value 3: sky
    expected[4:] = 9
    expected[4:6, :6] = -1  # a bed that is not drawn is void
    expected[4:6, :3] = 7
    expected[2:6, 8:] = 8  # windows lie on top of stuff
    expected[0, 0] = -1
    assert (drawn == expected).all()
    assert labels[2, 8] != labels[2, 10] and len(segments) == 5 and is_clean(paths)


def test_ade20k_script(ade20k, repository):
    done = run_script(repository, "prepare_ade20k_panoptic.py", ade20k.parent, "--splits", "val")
    assert done.returncode == 0 and "val: 1 images, 5 segments" in done.stdout, done.stderr
    assert is_clean(ade20k_paths(ade20k, "val")) and not ade20k_paths(ade20k, "train").panoptic_json.exists()


def test_nothing_is_overwritten_unasked(ade20k):
    prepare_ade20k(ade20k, "val")
    with pytest.raises(ValueError, match=r"ade20k_panoptic_val\.json exists.*--overwrite"):
        prepare_ade20k(ade20k, "val")
    prepare_ade20k(ade20k, "val", overwrite=True)


def test_what_ade20k_lacks_is_named(ade20k, tmp_path):
    (ade20k / "annotations_instance" / "validation" / "ADE_val_00000001.png").unlink()
    with pytest.raises(ValueError, match=r"annotations_instance.validation.ADE_val_00000001\.png: no such"):
        prepare_ade20k(ade20k, "val")
    with pytest.raises(ValueError, match=r"images.training: found no file \*\.jpg.*datasets/README\.md"):
        prepare_ade20k(tmp_path / "elsewhere", "train")


# ------------------------------------------------------------------ Cityscapes


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    """One image of 8 x 16 in each split: road, two cars and a group of cars, a caravan, the car that carries us."""
    root = tmp_path / "cityscapes"
    ids = np.full((8, 16), 7, np.int32)  # road
    ids[2:4, 0:4] = 26000
    ids[2:4, 4:8] = 26001
    ids[2:4, 8:12] = 26  # cars
    ids[2:4, 12:16] = 29000  # a caravan is not evaluated
    ids[7] = 1  # ego vehicle
    for split, city in (("train", "aachen"), ("val", "ulm")):
        name = f"{city}_000000_000019"
        for folder in ("gtFine", "leftImg8bit"):
            (root / folder / split / city).mkdir(parents=True)
        Image.fromarray(ids.astype(np.uint16)).save(root / f"gtFine/{split}/{city}/{name}_gtFine_instanceIds.png")
        Image.fromarray(ids.astype(np.uint8)).save(root / f"gtFine/{split}/{city}/{name}_gtFine_labelIds.png")
        Image.new("RGB", (16, 8)).save(root / f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png")
    return root


def test_cityscapes(cityscapes):
    notes = prepare_cityscapes(cityscapes, "train", workers=2)
    assert notes == {"images": 1, "segments": 4}
    paths = cityscapes_paths(cityscapes, "train")
    drawn, labels, segments = category_map(paths)
    expected = np.full((8, 16), 7)
    expected[2:4, :12] = 26
    expected[2:4, 12:] = -1
    expected[7] = -1
    assert (drawn == expected).all() and is_clean(paths)
    crowds = {segment["id"] for segment in segments if segment["iscrowd"]}
    assert crowds == {labels[2, 8]} and labels[2, 0] != labels[2, 4]
    assert all(segment["isthing"] == (segment["category_id"] > 10) for segment in segments)
    content = json.loads(paths.panoptic_json.read_text())
    assert content["images"][0] == {
        "id": "aachen_000000_000019",
        "file_name": "aachen/aachen_000000_000019_leftImg8bit.png",
        "height": 8,
        "width": 16,
    }


def test_cityscapes_script_and_its_mistakes(cityscapes, repository):
    done = run_script(repository, "prepare_cityscapes_panoptic.py", cityscapes.parent)
    assert done.returncode == 0 and "val: 1 images, 4 segments" in done.stdout, done.stderr
    done = run_script(repository, "prepare_cityscapes_panoptic.py", cityscapes.parent)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ") and "--overwrite" in done.stderr


# ------------------------------------------------------------------ COCO


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


@pytest.fixture
def coco_zips(tmp_path: Path) -> Path:
    """The official archives, with one image: as there, the PNGs are in an archive inside, with what macOS adds."""
    zips = tmp_path / "zips"
    zips.mkdir()
    save_ids(tmp_path / "one.png", np.full((4, 6), 5))
    Image.new("RGB", (6, 4)).save(tmp_path / "one.jpg")
    write_zip(zips / "val2017.zip", {"val2017/": b"", "val2017/000000000001.jpg": (tmp_path / "one.jpg").read_bytes()})
    pngs = {
        "panoptic_val2017/000000000001.png": (tmp_path / "one.png").read_bytes(),
        "__MACOSX/panoptic_val2017/._000000000001.png": b"?",
    }
    write_zip(tmp_path / "inner.zip", pngs)
    segment = {"id": 5, "category_id": 1, "iscrowd": 0, "area": 24, "bbox": [0, 0, 6, 4]}
    content = {
        "images": [{"id": 1, "file_name": "000000000001.jpg", "height": 4, "width": 6}],
        "annotations": [{"image_id": 1, "file_name": "000000000001.png", "segments_info": [segment]}],
        "categories": [{"id": 1, "name": "person", "isthing": 1}],
    }
    write_zip(
        zips / "panoptic_annotations_trainval2017.zip",
        {
            "annotations/panoptic_val2017.json": json.dumps(content).encode(),
            "annotations/panoptic_val2017.zip": (tmp_path / "inner.zip").read_bytes(),
        },
    )
    return zips


def test_coco_from_the_official_archives_alone(coco_zips, repository, tmp_path):
    script = ("prepare_coco_panoptic.py", tmp_path / "data", "--zips", str(coco_zips), "--splits", "val")
    done = run_script(repository, *script)
    assert done.returncode == 0 and "val2017: 1 images and 1 PNGs, all there" in done.stdout, done.stderr
    root = tmp_path / "data" / "coco"
    assert {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()} == {
        "annotations/panoptic_val2017.json",
        "panoptic_val2017/000000000001.png",
        "val2017/000000000001.jpg",
    }
    places = ("annotations/panoptic_val2017.json", "panoptic_val2017", "val2017")
    assert validate_panoptic(*(str(root / place) for place in places)).is_clean
    for archive in coco_zips.iterdir():
        archive.unlink()
    assert run_script(repository, *script).returncode == 0  # all is there

    (root / "val2017" / "000000000001.jpg").unlink()
    done = run_script(repository, *script)
    assert done.returncode == 2 and "val2017 lacks 1 files" in done.stderr


def test_coco_without_its_archives_says_where_they_are(coco_zips, repository, tmp_path):
    root = tmp_path / "data"
    done = run_script(repository, "prepare_coco_panoptic.py", root, "--zips", str(coco_zips))
    assert done.returncode == 2 and "train2017.zip; download the archive from https://cocodataset.org" in done.stderr
    with zipfile.ZipFile(coco_zips / "panoptic_annotations_trainval2017.zip") as archive:
        archive.extractall(root / "coco")  # by hand
    (coco_zips / "panoptic_annotations_trainval2017.zip").unlink()
    done = run_script(repository, "prepare_coco_panoptic.py", root, "--zips", str(coco_zips), "--splits", "val")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("damaged", "kept"), [("val2017.zip", 0), ("val2017.zip", 200), (None, 9)])
def test_coco_with_a_damaged_archive_names_it(coco_zips, repository, tmp_path, damaged, kept):
    """Cut off, empty, or with a byte that is wrong."""
    archive = coco_zips / (damaged or "panoptic_annotations_trainval2017.zip")
    content = bytearray(archive.read_bytes())
    if damaged:
        del content[kept:]
    else:
        content[content.index(b'"images"')] ^= 1
    archive.write_bytes(content)
    done = run_script(
        repository, "prepare_coco_panoptic.py", tmp_path / "data", "--zips", str(coco_zips), "--splits", "val"
    )
    assert done.returncode == 2
    assert f"error: {archive} is damaged" in done.stderr.splitlines()[-1] and "again" in done.stderr.splitlines()[-1]
    folder = tmp_path / "data" / "coco" / ("val2017" if damaged else "annotations/panoptic_val2017.json")
    assert not folder.exists()
