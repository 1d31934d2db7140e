"""Panoptic sets by name and three paths: what is registered, when the JSON is read, and which names are refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from psf import add_psf_config
from psf.data import PanopticSet, check_dataset, load_dataset, register_from_config, register_panoptic
from tests.mini_set import CATEGORIES, IMAGES, write_mini_set

NAME = "psf_test_registered"


@pytest.fixture(autouse=True)
def _clean_catalogs() -> Iterator[None]:
    before = set(DatasetCatalog), set(MetadataCatalog)
    yield
    for name in set(DatasetCatalog) - before[0]:
        DatasetCatalog.remove(name)
    for name in set(MetadataCatalog) - before[1]:
        MetadataCatalog.remove(name)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_mini_set(tmp_path / "mini")
    return tmp_path / "mini"


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_psf_config(cfg)
    return cfg


def places(root: Path) -> tuple[Path, Path, Path]:
    return root / "panoptic.json", root / "panoptic", root / "images"


def flag(root: Path, name: str = NAME) -> str:
    return f"{name}={','.join(map(str, places(root)))}"


def test_all_comes_from_the_json(root: Path):
    register_panoptic(NAME, *places(root))
    metadata = MetadataCatalog.get(NAME)
    assert metadata.thing_classes == [category["name"] for category in CATEGORIES]
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 1, 5: 3}
    assert metadata.stuff_dataset_id_to_contiguous_id == {7: 0, 12: 2, 9: 4}
    check_dataset(NAME)
    images = load_dataset(NAME)
    assert len(images) == len(IMAGES)
    assert all(Path(image[key]).is_file() for image in images for key in ("file_name", "pan_seg_file_name"))


def test_the_json_is_read_when_it_is_needed_and_once(root: Path):
    json_file = root / "panoptic.json"
    away = json_file.rename(root / "away.json")
    register_panoptic(NAME, *places(root))
    metadata = MetadataCatalog.get(NAME)
    assert metadata.image_root == str(root / "images")
    assert metadata.get("sem_seg_root") is None  # which needs no JSON
    with pytest.raises(ValueError, match=r"panoptic\.json: this file of a dataset is missing"):
        metadata.get("stuff_classes")
    away.rename(json_file)
    assert len(metadata.get("stuff_classes")) == len(CATEGORIES)
    json_file.unlink()
    assert len(metadata.thing_colors) == len(CATEGORIES)
    assert metadata.evaluator_type == "coco_panoptic_seg"


def test_metadata_can_be_copied_and_listed(root: Path):
    register_panoptic(NAME, *places(root))
    other = copy.deepcopy(MetadataCatalog.get(NAME))
    assert other.as_dict()["label_divisor"] == 1000
    assert other.as_dict() == MetadataCatalog.get(NAME).as_dict()
    with pytest.raises(AttributeError, match="no_such_entry"):
        _ = other.no_such_entry


def test_the_categories_alone_name_the_classes(root: Path):
    """What a demo needs."""
    (root / "panoptic.json").write_text(json.dumps({"categories": CATEGORIES}))
    register_panoptic(NAME, *places(root))
    assert MetadataCatalog.get(NAME).stuff_colors[0] == [0, 0, 250]


def test_the_same_again_changes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch):
    register_panoptic(NAME, *places(root))
    metadata = MetadataCatalog.get(NAME)
    monkeypatch.chdir(root)
    register_panoptic(NAME, "panoptic.json", Path("panoptic"), "../mini/images")
    assert MetadataCatalog.get(NAME) is metadata


def test_a_name_that_was_asked_for_before_is_free(root: Path):
    assert MetadataCatalog.get(NAME).get("thing_classes") is None
    register_panoptic(NAME, *places(root))
    assert MetadataCatalog.get(NAME).thing_classes[1] == "ball"


def test_names_that_are_taken(root: Path):
    register_panoptic(NAME, *places(root))
    for name in (NAME, "coco_2017_val_panoptic", "psf_shapes_val"):
        with pytest.raises(ValueError, match=f'"{name}" is registered already .*choose another name'):
            register_panoptic(name, root / "other.json", root, root)
    assert MetadataCatalog.get(NAME).panoptic_json == str(root / "panoptic.json")


@pytest.mark.parametrize("name", ["", "a=b", "a,b", "../mine", "a/b", "..", ".mine", "-mine", "a b", "a\\b", "mine\n"])
def test_names_that_no_flag_can_say_or_that_lead_elsewhere(name: str):
    """Results are called after a set: OUTPUT_DIR/inference/NAME, per_class_NAME.csv, ..."""
    with pytest.raises(ValueError, match="cannot be the name of a dataset"):
        register_panoptic(name, "a.json", "b", "c")
    if name and "=" not in name:
        with pytest.raises(ValueError, match=r"cannot be the name of a dataset \(--register"):
            PanopticSet.parse(f"{name}=a.json,b,c")


@pytest.mark.parametrize("name", ["mine", "Mine-2.val", "_mine", "2024_val", "größe"])
def test_names_that_are_fine(name: str):
    assert PanopticSet.parse(f"{name}=a.json,b,c").name == name
    register_panoptic(name, "a.json", "b", "c")
    assert name in DatasetCatalog


@pytest.mark.parametrize("text", ["", "mine", "mine=a.json,pngs", "mine=a.json,,images", "=a,b,c", "mine=a,b,c,d"])
def test_other_forms_are_refused(text: str):
    with pytest.raises(ValueError, match=r"--register .*expected NAME=JSON,PNGS,IMAGES"):
        PanopticSet.parse(text)


def test_a_comma_in_a_path_is_named():
    with pytest.raises(ValueError, match="paths must not contain commas"):
        PanopticSet.parse("mine=a.json,b,c,d")


def test_paths_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    found = PanopticSet.parse("mine=a=1.json,~/pngs,s3://bucket/images")
    assert found == ("mine", f"{tmp_path}/a=1.json", "/home/me/pngs", "s3://bucket/images")
    assert PanopticSet.parse(str(found)) == found


class TestConfig:
    def test_flags_and_key(self, cfg: CfgNode, root: Path):
        cfg.DATASETS.PSF_REGISTER = [flag(root, f"{NAME}_train")]
        register_from_config(cfg, [flag(root, f"{NAME}_val"), flag(root, f"{NAME}_val")])
        found = cfg.DATASETS.PSF_REGISTER
        assert found == [flag(root, f"{NAME}_train"), flag(root, f"{NAME}_val")]
        assert {f"{NAME}_train", f"{NAME}_val"} <= set(DatasetCatalog)

    def test_what_a_config_says_can_be_read_back(self, cfg: CfgNode, root: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.chdir(root)
        register_from_config(cfg, [f"{NAME}=panoptic.json,panoptic,images"])
        again = CfgNode.load_cfg(cfg.dump())
        monkeypatch.chdir("/")
        register_from_config(again)
        found = again.DATASETS.PSF_REGISTER
        assert found == [flag(root)]

    def test_a_flag_says_where_a_set_lies_now(self, cfg: CfgNode, root: Path, tmp_path: Path):
        cfg.DATASETS.PSF_REGISTER = [flag(tmp_path / "old")]
        register_from_config(cfg, [flag(root)])
        found = cfg.DATASETS.PSF_REGISTER
        assert found == [flag(root)]
        assert MetadataCatalog.get(NAME).image_root == str(root / "images")

    def test_one_name_for_two_sets(self, cfg: CfgNode, root: Path, tmp_path: Path):
        with pytest.raises(ValueError, match="two sets have the same name"):
            register_from_config(cfg, [flag(root), flag(tmp_path)])
        assert NAME not in DatasetCatalog
