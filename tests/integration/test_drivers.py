"""Detectron2 drives the model: predictor, trainer, evaluator, visualizer, and a plain loop of its functions."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import panopticapi.evaluation
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.evaluation import COCOPanopticEvaluator, inference_on_dataset
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.structures import BoxMode
from detectron2.utils.visualizer import Visualizer
from PIL import Image

from psf.data import build_mapper, read_image
from psf.evaluation import PanopticQualityEvaluator
from psf.structures import panoptic_targets
from tests.mini_set import CATEGORIES, IMAGES, register_mini_set, unregister_mini_set, write_mini_set
from tests.models import check_result, tiny_config, tiny_model, total


@pytest.fixture(autouse=True)
def _one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """panopticapi starts processes for five images, and leaves them running."""
    one_core = partial(panopticapi.evaluation.pq_compute_single_core, 0)
    monkeypatch.setattr(panopticapi.evaluation, "pq_compute_multi_core", one_core)


@pytest.fixture
def mini(tmp_path: Path) -> Iterator[str]:
    """Name of a set of five small images whose stuff comes before and between the things."""
    write_mini_set(tmp_path / "mini")
    yield register_mini_set(tmp_path / "mini")
    unregister_mini_set()


@pytest.fixture
def cfg(mini: str, tmp_path: Path) -> CfgNode:
    """Trains two iterations; every mask becomes a segment."""
    keys = {f"POST_PROCESSOR.{kind}.{key}": 0.0 for kind in ("THINGS", "STUFF") for key in ("T_CNF", "T_KEEP")}
    return tiny_config(
        {"NUM_THING_CLASSES": -1, "NUM_STUFF_CLASSES": -1, **keys},
        DATASETS__TRAIN=(mini,),
        DATASETS__TEST=(mini,),
        DATALOADER__NUM_WORKERS=0,
        INPUT__MIN_SIZE_TRAIN=(32,),
        INPUT__MIN_SIZE_TEST=32,
        INPUT__CROP__ENABLED=False,
        SOLVER__IMS_PER_BATCH=2,
        SOLVER__MAX_ITER=2,
        SOLVER__STEPS=(),
        SOLVER__CLIP_GRADIENTS__CLIP_TYPE="norm",  # "full_model" is psf's and Mask2Former's, not Detectron2's
        OUTPUT_DIR=str(tmp_path / "output"),
    )


@pytest.fixture
def weights(cfg: CfgNode, tmp_path: Path) -> str:
    """A checkpoint that is sure of many classes at many places."""
    keys = {"NUM_THING_CLASSES": 2, "NUM_STUFF_CLASSES": 3}
    path = tmp_path / "weights.pth"
    torch.save({"model": tiny_model(keys).state_dict()}, path)
    return str(path)


class TestPredictor:
    def test_image_in_results_out(self, cfg: CfgNode, weights: str, mini: str):
        cfg.MODEL.WEIGHTS = weights
        image = read_image(DatasetCatalog.get(mini)[0]["file_name"], "BGR")
        predictor = DefaultPredictor(cfg)
        result = predictor(image)
        check_result(result, predictor.model, 40, 60)
        assert result["panoptic_seg"][1]

    def test_channels_come_in_the_order_of_the_config(self, cfg: CfgNode, weights: str, mini: str):
        """The predictor takes BGR; it gives what the model gives for the RGB image of the mapper."""
        cfg.MODEL.WEIGHTS = weights
        one = DatasetCatalog.get(mini)[0]
        predictor = DefaultPredictor(cfg)
        result = predictor(read_image(one["file_name"], "BGR"))
        with torch.no_grad():
            [expected] = predictor.model([build_mapper(cfg, is_train=False)(one)])
        torch.testing.assert_close(result["sem_seg"], expected["sem_seg"])
        assert torch.equal(result["panoptic_seg"][0], expected["panoptic_seg"][0])

    @pytest.mark.parametrize(
        ("layout", "message"),
        [
            (
                lambda weights: weights,
                r"convert the file with psf convert-weights, or load it .* psf\.engine\.Predictor",
            ),
            (lambda weights: {"state_dict": weights, "meta": {"epoch": 24}}, "Unsupported type found in checkpoint"),
        ],
    )
    def test_released_weights_are_refused(self, cfg: CfgNode, tmp_path: Path, layout: Callable, message: str):
        """Detectron2's checkpointer would skip every entry; it refuses the layout of the published files itself."""
        cfg.MODEL.WEIGHTS = str(tmp_path / "released.pth")
        names = ("backbone.layer1.0.conv1.weight", "bbox_head.stuff_query.weight")
        torch.save(layout(dict.fromkeys(names, torch.zeros(1))), cfg.MODEL.WEIGHTS)
        with pytest.raises(ValueError, match=message):
            DefaultPredictor(cfg)


class StockTrainer(DefaultTrainer):
    """Detectron2's trainer, told of nothing but data and evaluator."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        return build_detection_train_loader(cfg, mapper=build_mapper(cfg, is_train=True))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> COCOPanopticEvaluator:
        return COCOPanopticEvaluator(dataset_name, str(Path(cfg.OUTPUT_DIR, "inference")))


def test_default_trainer(cfg: CfgNode, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "detectron2")  # so that it sets up no handlers, which would stay
    output = Path(cfg.OUTPUT_DIR)
    output.mkdir()
    trainer = StockTrainer(cfg)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    assert len(json.loads((output / "inference" / "predictions.json").read_text())["annotations"]) == len(IMAGES)
    after = trainer.model.state_dict()
    assert not torch.equal(after["stuff_query_feat.weight"], before["stuff_query_feat.weight"])
    assert torch.equal(after["backbone.stem.conv1.weight"], before["backbone.stem.conv1.weight"])  # frozen
    saved = torch.load(output / "model_final.pth", weights_only=True)["model"]
    assert all(torch.equal(saved[name], value) for name, value in after.items())
    written = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert {"total_loss", "loss_seg_things", "panoptic_seg/PQ"} <= set().union(*written)


def test_panoptic_evaluator(cfg: CfgNode, weights: str, mini: str, tmp_path: Path):
    """Predictions carry the set's own category ids, and both evaluators agree about them."""
    model = build_model(cfg)
    DetectionCheckpointer(model).load(weights)
    loader = build_detection_test_loader(cfg, mini)
    evaluator = COCOPanopticEvaluator(mini, str(tmp_path / "theirs"))
    theirs = inference_on_dataset(model, loader, evaluator)["panoptic_seg"]
    predicted = json.loads((tmp_path / "theirs" / "predictions.json").read_text())["annotations"]
    assert len(predicted) == len(IMAGES)
    ids = {segment["category_id"] for image in predicted for segment in image["segments_info"]}
    assert ids <= {category["id"] for category in CATEGORIES} and len(ids) > 1
    ours = inference_on_dataset(model, loader, PanopticQualityEvaluator(mini))["panoptic_seg"]
    for name in ("PQ", "PQ_th", "PQ_st", "SQ", "RQ"):
        assert ours[name] == pytest.approx(theirs[name]), name


def test_visualizer(cfg: CfgNode, weights: str, mini: str):
    cfg.MODEL.WEIGHTS = weights
    image = read_image(DatasetCatalog.get(mini)[0]["file_name"], "RGB")
    result = DefaultPredictor(cfg)(image[:, :, ::-1])
    drawings = [
        Visualizer(image, MetadataCatalog.get(mini)).draw_panoptic_seg(*result["panoptic_seg"]),
        Visualizer(image, MetadataCatalog.get(mini)).draw_instance_predictions(result["instances"]),
        Visualizer(image, MetadataCatalog.get(mini)).draw_sem_seg(result["sem_seg"].argmax(0)),
    ]
    for drawing in drawings:
        picture = drawing.get_image()
        assert picture.shape == image.shape and (picture != image).any()


def test_plain_loop(cfg: CfgNode, mini: str, tmp_path: Path):
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    before = model.stuff_query_feat.weight.detach().clone()
    model.train()
    loader = build_detection_train_loader(cfg, mapper=build_mapper(cfg, is_train=True))
    for inputs, _ in zip(loader, range(2), strict=False):
        losses = model(inputs)
        assert all(value.isfinite() for value in losses.values())
        optimizer.zero_grad()
        total(losses).backward()
        optimizer.step()
        scheduler.step()
    assert not torch.equal(model.stuff_query_feat.weight, before)
    evaluator = COCOPanopticEvaluator(mini, str(tmp_path / "inference"))
    results = inference_on_dataset(model, build_detection_test_loader(cfg, mini), evaluator)
    assert "PQ" in results["panoptic_seg"]


def test_mapper_of_panoptic_fpn(cfg: CfgNode, mini: str, tmp_path: Path):
    """Detectron2's own mapper, with polygons and a semantic map, and psf's tell the same ground truth."""
    cfg.merge_from_list(["INPUT.MIN_SIZE_TRAIN", (40,), "INPUT.RANDOM_FLIP", "none", "MODEL.MASK_ON", True])
    one = DatasetCatalog.get(mini)[0]  # sky above ground, a ball and a box, 40 x 60
    boxes = {1: (5, 5, 20, 20), 3: (40, 20, 55, 35)}  # contiguous id: x0, y0, x1, y1
    semantics = np.zeros((40, 60), np.uint8)
    semantics[25:] = 2
    for x0, y0, x1, y1 in boxes.values():
        semantics[y0:y1, x0:x1] = 255
    Image.fromarray(semantics).save(tmp_path / "semantics.png")
    annotations = [
        {
            "category_id": k,
            "bbox": [x0, y0, x1, y1],
            "bbox_mode": BoxMode.XYXY_ABS,
            "iscrowd": 0,
            "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
        }
        for k, (x0, y0, x1, y1) in boxes.items()
    ]
    fpn = {key: one[key] for key in ("file_name", "image_id")} | {
        "height": 40, "width": 60, "annotations": annotations, "sem_seg_file_name": str(tmp_path / "semantics.png")
    }  # fmt: skip
    theirs, ours = DatasetMapper(cfg, is_train=True)(fpn), build_mapper(cfg, is_train=True)(one)
    assert torch.equal(theirs["image"], ours["image"])
    classes = build_model(cfg).classes
    one_gt, other_gt = panoptic_targets([theirs, ours], classes, (64, 64), "cpu")
    for name in (field.name for field in dataclasses.fields(one_gt)):
        a, b = getattr(one_gt, name), getattr(other_gt, name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, name
