from __future__ import annotations

import json

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from psf.config import add_psf_config
from psf.data import builtin, check_dataset, load_dataset, register_builtin
from psf.data.builtin import ADE20K_THING_VALUES, ade20k_categories, cityscapes_categories
from psf.meta_arch import classes_from_config
from psf.model_zoo import get_config_file

NAMES = [f"psf_{dataset}_panoptic_{split}" for dataset in ("ade20k", "cityscapes") for split in ("train", "val")]


def test_ade20k_has_a_hundred_things_in_order():
    categories = ade20k_categories()
    assert [one["id"] for one in categories] == list(range(150))
    assert len(ADE20K_THING_VALUES) == 100 == sum(one["isthing"] for one in categories)
    names = [categories[value - 1]["name"] for value in ADE20K_THING_VALUES]
    # The first, a middle and the last of the instance benchmark's list.
    assert names[:5] == ["bed", "window", "cabinet", "person", "door"]
    assert (names[49], names[-1]) == ("bus", "flag")
    stuff = [one["name"] for one in categories if not one["isthing"]]
    assert stuff[:7] == ["wall", "building", "sky", "floor", "tree", "ceiling", "road, route"]


def test_cityscapes_has_eight_things():
    categories = cityscapes_categories()
    things = ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
    assert [one["name"] for one in categories if one["isthing"]] == things
    assert len(categories) == 19 and {one["name"]: one["id"] for one in categories}["bicycle"] == 33


@pytest.mark.parametrize("name", NAMES)
def test_sets_are_registered_without_files(name):
    assert name in DatasetCatalog
    metadata = MetadataCatalog.get(name)
    counts = {"psf_ade20k": (100, 50), "psf_cityscapes": (8, 11)}[name.partition("_panoptic")[0]]
    assert len(metadata.thing_dataset_id_to_contiguous_id) == counts[0]
    assert len(metadata.stuff_dataset_id_to_contiguous_id) == counts[1]


def test_a_missing_set_is_one_clear_line(monkeypatch):
    with pytest.raises(ValueError, match=r"psf_ade20k_panoptic_val.*missing: .*DETECTRON2_DATASETS") as caught:
        check_dataset("psf_ade20k_panoptic_val")
    assert "\n" not in str(caught.value)


def test_plain_names_are_left_to_others():
    assert not {name.removeprefix("psf_") for name in NAMES} & set(DatasetCatalog)


def test_images_of_cityscapes_own_script_are_found(tmp_path, monkeypatch):
    """That script names CITY_..._gtFine_leftImg8bit.png, a file that does not exist, in no folder."""
    root = tmp_path / "cityscapes"
    for folder in ("leftImg8bit/val/ulm", "gtFine/cityscapes_panoptic_val"):
        (root / folder).mkdir(parents=True)
    image = {
        "id": "ulm_000000_000019",
        "file_name": "ulm_000000_000019_gtFine_leftImg8bit.png",
        "height": 2,
        "width": 3,
    }
    annotation = {"image_id": image["id"], "file_name": "ulm_000000_000019_gtFine_panoptic.png", "segments_info": []}
    Image.new("RGB", (3, 2)).save(root / "leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png")
    Image.new("RGB", (3, 2)).save(root / "gtFine/cityscapes_panoptic_val" / annotation["file_name"])
    content = {"images": [image], "annotations": [annotation], "categories": cityscapes_categories()}
    (root / "gtFine/cityscapes_panoptic_val.json").write_text(json.dumps(content))

    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for name in NAMES:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    try:
        builtin.register_builtin()
        [one] = load_dataset("psf_cityscapes_panoptic_val")
        assert one["file_name"] == str(root / "leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png")
    finally:
        monkeypatch.undo()
        for name in NAMES:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        register_builtin()


@pytest.mark.parametrize(("config", "counts"), [("ade20k", (100, 50)), ("cityscapes", (8, 11))])
def test_configs_know_their_classes(config, counts):
    cfg = get_cfg()
    add_psf_config(cfg)
    cfg.merge_from_file(get_config_file(f"{config}/psf_R50.yaml"))
    classes = classes_from_config(cfg)
    assert (len(classes.thing_ids), len(classes.stuff_ids)) == counts


def test_a_home_folder_that_does_not_exist_is_no_error_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", "~no-such-user/sets")
    register_builtin()
    assert "psf_shapes_train" in DatasetCatalog
