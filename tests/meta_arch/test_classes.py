"""The classes of a model without its dataset: from MODEL.PSF.CLASSES, unless a registered set has them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor

import psf
from psf.checkpoint import class_names_from_config
from psf.data import register_from_config, register_panoptic
from psf.meta_arch import classes_from_config, store_classes
from tests.mini_set import CATEGORIES, register_mini_set, unregister_mini_set, write_mini_set
from tests.model_files import CLASSES, model_config, write_model_file

NAME = "psf_test_unknown_here"
COUNTS = {"NUM_THING_CLASSES": -1, "NUM_STUFF_CLASSES": -1}


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    for catalog in (MetadataCatalog, DatasetCatalog):
        if NAME in catalog.list():
            catalog.remove(NAME)


def test_default_predictor_needs_no_dataset(tmp_path: Path) -> None:
    """Detectron2's own way with a config.yaml of psf: names, colours and ids are those of the training."""
    cfg = model_config(COUNTS, DATASETS__TRAIN=(NAME,), DATASETS__TEST=(NAME,))
    cfg.MODEL.WEIGHTS = str(write_model_file(tmp_path, COUNTS))
    (tmp_path / "config.yaml").write_text(cfg.dump(), encoding="utf-8")
    cfg = get_cfg()
    psf.add_psf_config(cfg)
    cfg.merge_from_file(str(tmp_path / "config.yaml"))
    predictor = DefaultPredictor(cfg)
    assert predictor.model.classes == ((0, 1, 2), (3, 4, 5, 6))
    assert predictor.metadata.thing_classes[:3] == [one.name for one in CLASSES[:3]]
    assert predictor.metadata.thing_dataset_id_to_contiguous_id == {3: 0, 5: 1, 30: 2}
    assert predictor(np.zeros((64, 96, 3), np.uint8))["panoptic_seg"][0].shape == (64, 96)


def test_a_registered_set_comes_first(tmp_path: Path) -> None:
    write_mini_set(tmp_path / "mini")
    name = register_mini_set(tmp_path / "mini")
    try:
        cfg = model_config(COUNTS, DATASETS__TEST=(name,))
        assert classes_from_config(cfg) == ((1, 3), (0, 2, 4))
        store_classes(cfg)
        assert [one.split(maxsplit=4)[4] for one in cfg.MODEL.PSF.CLASSES] == ["ball", "box", "sky", "ground", "cloud"]
    finally:
        unregister_mini_set()
    assert class_names_from_config(cfg) == (("ball", "box"), ("sky", "ground", "cloud"))  # also without the set
    cfg.MODEL.PSF.NUM_STUFF_CLASSES = 0
    assert classes_from_config(cfg) == ((1, 3), ())


def test_the_set_can_be_registered_later(tmp_path: Path) -> None:
    write_mini_set(tmp_path / "mini")
    cfg = model_config(COUNTS, DATASETS__TEST=(NAME,))
    psf.PanopticSegFormer(**psf.PanopticSegFormer.from_config(cfg))
    assert MetadataCatalog.get(NAME).stuff_classes[3] == "sky"
    root = tmp_path / "mini"
    register_panoptic(NAME, root / "panoptic.json", root / "panoptic", root / "images")
    assert MetadataCatalog.get(NAME).stuff_classes == [one["name"] for one in CATEGORIES]


def test_a_set_whose_json_is_gone(tmp_path: Path) -> None:
    cfg = model_config(COUNTS, DATASETS__TEST=(NAME,))
    cfg.DATASETS.PSF_REGISTER = [f"{NAME}={tmp_path}/gone.json,{tmp_path}/png,{tmp_path}/images"]
    register_from_config(cfg)
    assert classes_from_config(cfg) == ((0, 1, 2), (3, 4, 5, 6))
    assert MetadataCatalog.get(NAME).thing_classes[0] == "ball"
    cfg.MODEL.PSF.CLASSES = []
    MetadataCatalog.remove(NAME), DatasetCatalog.remove(NAME)
    register_from_config(cfg)
    with pytest.raises(psf.UserError, match=r"gone\.json"):
        classes_from_config(cfg)
