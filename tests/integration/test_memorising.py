"""A model that is to learn four real images by heart: an overfitting test, the proof that every part can learn."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from psf.data import load_panoptic_json, panoptic_metadata
from psf.engine import Trainer, build_config

pytestmark = pytest.mark.slow

NAME = "psf_test_four_coco_images"
IMAGE_IDS = (39769, 245764, 385029, 366141)
OPTIONS = [
    *("MODEL.DEVICE", "cpu"),
    *("DATASETS.TRAIN", f"('{NAME}',)"),
    *("DATASETS.TEST", f"('{NAME}',)"),
    *("INPUT.MIN_SIZE_TRAIN", "(256,)"),
    *("INPUT.MAX_SIZE_TRAIN", "352"),
    *("INPUT.MIN_SIZE_TEST", "256"),
    *("INPUT.MAX_SIZE_TEST", "352"),
    *("INPUT.RANDOM_FLIP", "none"),
    *("SOLVER.IMS_PER_BATCH", "2"),
    *("SOLVER.MAX_ITER", "700"),
    *("MODEL.PSF.POST_PROCESSOR.STUFF.T_KEEP", "0.4"),  # in so few images stuff is in many small pieces
    *("DATALOADER.NUM_WORKERS", "1"),
    *("MODEL.PSF.TEST.INSTANCE_ON", "False"),
    *("MODEL.PSF.TEST.SEMANTIC_ON", "False"),
]


@pytest.fixture
def four_images(shared: Path) -> Iterator[None]:
    """The four images as a dataset, with all of COCO's classes."""
    root = shared / "data" / "coco25" / "coco"
    if not root.is_dir():
        pytest.skip(f"needs {root} (COCO images with panoptic ground truth)")
    json_file, png_root = root / "annotations" / "panoptic_val2017.json", root / "panoptic_val2017"

    def load() -> list[dict]:
        dicts = load_panoptic_json(str(json_file), str(png_root), str(root / "val2017"))
        return [image for image in dicts if image["image_id"] in IMAGE_IDS]

    DatasetCatalog.register(NAME, load)
    categories = json.loads(json_file.read_text())["categories"]
    MetadataCatalog.get(NAME).set(
        panoptic_json=str(json_file),
        panoptic_root=str(png_root),
        image_root=str(root / "val2017"),
        **panoptic_metadata(categories),
    )
    yield
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.mark.usefixtures("four_images")
def test_four_coco_images_are_learnt_by_heart(tmp_path: Path) -> None:
    cfg = build_config("configs/shapes/psf_tiny.yaml", [*OPTIONS, "OUTPUT_DIR", str(tmp_path)])
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    results = trainer.train()
    assert results["panoptic_seg"]["PQ"] >= 80
