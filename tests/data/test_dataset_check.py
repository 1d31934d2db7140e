from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_panoptic, register_coco_panoptic_separated
from PIL import Image

from psf.data import check_dataset, count_segments, largest_count, load_dataset, panoptic_metadata
from psf.data.dataset_check import require_file

NAME = "psf_test_set"
CATEGORIES = [{"id": 5, "name": "sea", "isthing": 0, "color": [0, 0, 9]}]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A set of one image, registered by Detectron2's own function, as its built-in COCO sets are."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "images").mkdir()
    (tmp_path / "png").mkdir()
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "images" / "a.jpg")
    Image.fromarray(np.full((2, 2, 3), [1, 0, 0], np.uint8)).save(tmp_path / "png" / "a.png")
    write_json(tmp_path, category_id=5)
    metadata = panoptic_metadata(CATEGORIES)
    for key in ("evaluator_type", "ignore_label", "label_divisor"):
        del metadata[key]
    paths = [str(tmp_path / part) for part in ("images", "png", "panoptic.json")]
    register_coco_panoptic(NAME, metadata, *paths, instances_json=str(tmp_path / "instances.json"))
    register_coco_panoptic_separated(NAME, {}, *paths, str(tmp_path / "stuff"), str(tmp_path / "instances.json"))
    yield tmp_path
    for name in (NAME, f"{NAME}_separated", f"{NAME}_stuffonly"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def write_json(folder: Path, category_id: int) -> None:
    segment = {"id": 1, "category_id": category_id, "iscrowd": 0, "area": 4, "bbox": [0, 0, 2, 2]}
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 2, "width": 2}],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": [segment]}],
        "categories": CATEGORIES,
    }
    (folder / "panoptic.json").write_text(json.dumps(content))


def test_complete_set_loads(folder):
    """Its instances JSON is not there: Detectron2 names one in the metadata, but a panoptic set does not need it."""
    check_dataset(NAME)
    (entry,) = load_dataset(NAME)
    assert entry["segments_info"][0]["category_id"] == 0


@pytest.mark.parametrize(("part", "key"), [("images", "image_root"), ("png", "panoptic_root")])
def test_json_without_a_folder_is_named(folder, part, key):
    shutil.rmtree(folder / part)
    with pytest.raises(ValueError, match=rf"'{NAME}' is incomplete.*/{part} \({key}\)\. .*DETECTRON2_DATASETS"):
        check_dataset(NAME)


def test_all_that_is_missing_is_named_at_once(folder):
    shutil.rmtree(folder / "png")
    (folder / "panoptic.json").unlink()
    with pytest.raises(
        ValueError,
        match=rf"/png \(panoptic_root\), .*panoptic\.json \(panoptic_json\).*DETECTRON2_DATASETS, which is '{folder}'",
    ):
        load_dataset(NAME)


def test_separated_sets_need_instances_and_stuff(folder):
    with pytest.raises(ValueError, match=r"/stuff \(sem_seg_root\), .*instances\.json \(json_file\)"):
        check_dataset(f"{NAME}_separated")


def test_unset_variable_is_told(monkeypatch):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    with pytest.raises(ValueError, match=r"DETECTRON2_DATASETS, which is not set.*folder 'datasets'"):
        require_file("datasets/coco/none.json")


def test_sets_elsewhere_have_nothing_to_do_with_the_variable(folder, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/nowhere")
    shutil.rmtree(folder / "png")
    with pytest.raises(ValueError, match="--register NAME=JSON,PNGS,IMAGES") as caught:
        check_dataset(NAME)
    assert "DETECTRON2_DATASETS" not in str(caught.value)


def test_set_without_images(folder, monkeypatch):
    monkeypatch.setattr(DatasetCatalog, "get", lambda name: [])
    with pytest.raises(ValueError, match=rf"'{NAME}': .*panoptic\.json lists no image"):
        load_dataset(NAME)


def test_unknown_category_id_is_named(folder):
    write_json(folder, category_id=6)
    with pytest.raises(ValueError, match=rf"'{NAME}': 6 in .*panoptic\.json is a category id"):
        load_dataset(NAME)


def test_damaged_json_is_named(folder):
    (folder / "panoptic.json").write_text("[")
    with pytest.raises(ValueError, match=r"panoptic\.json is not a valid JSON file"):
        load_dataset(NAME)


@pytest.mark.parametrize("file", ["images/a.jpg", "png/a.png"])
def test_missing_first_file_is_named(folder, file):
    (folder / file).unlink()
    with pytest.raises(ValueError, match=rf"{file} of .*panoptic\.json is missing.*DETECTRON2_DATASETS"):
        load_dataset(NAME)


def test_unknown_name_suggests_a_known_one():
    with pytest.raises(ValueError, match=r"'psf_shape_val' .*did you mean psf_shapes_val"):
        check_dataset("psf_shape_val")
    with pytest.raises(ValueError, match=r"'xyz'.*registered are .*psf_shapes_train"):
        check_dataset("xyz")


def test_generated_sets_need_no_files():
    for split in ("train", "val", "tune"):
        check_dataset(f"psf_shapes_{split}")


THING, STUFF = {"category_id": 0, "isthing": True}, {"category_id": 5, "isthing": False}
CROWD = {**THING, "iscrowd": 1}


def test_counts():
    image = {"segments_info": [THING, THING, CROWD, STUFF, STUFF, {**STUFF, "category_id": 6}]}
    assert count_segments(image) == 2
    assert count_segments(image, stuff=True) == 4  # two classes of stuff, one of them in two segments
    assert count_segments({"annotations": [{"category_id": 1}, {"category_id": 1, "iscrowd": 1}]}) == 1
    assert count_segments({"segments_info": []}) == 0
    assert count_segments({"psf_scene": {}}) is None


def test_largest():
    dicts = [{"file_name": name, "segments_info": [THING] * n} for name, n in (("a", 1), ("b", 3), ("c", 3))]
    assert largest_count([{"image_id": 1}, *dicts]) == (3, "b")
    assert largest_count([{"image_id": 7, "annotations": []}]) == (0, "7")
    assert largest_count([{"image_id": 7}]) is None


def test_two_images_of_one_id_from_any_loader():
    dicts = [{"image_id": one, "file_name": f"{name}.png"} for one, name in ((1, "a"), (2, "b"), (1, "a"), ("01", "c"))]
    name = "psf_test_own_loader"
    DatasetCatalog.register(name, lambda: dicts[:num])
    try:
        num = 3
        assert load_dataset(name) == dicts[:3]  # an image may be listed repeatedly, to be seen more often
        num = 4
        with pytest.raises(ValueError, match=r"has the image id '01' twice, for a\.png and c\.png"):
            load_dataset(name)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
