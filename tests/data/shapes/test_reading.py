"""psf_shapes_train under mappers and models of Detectron2."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import pycocotools.mask as mask_api
import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, build_detection_train_loader
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from detectron2.utils.file_io import PathManager
from PIL import Image

from psf.config import add_psf_config
from psf.data import build_mapper
from psf.data.shapes import make_scene
from psf.data.shapes.reading import mask_polygons


def drawn(polygons: list[list[float]], height: int, width: int) -> np.ndarray:
    return mask_api.decode(mask_api.merge(mask_api.frPyObjects(polygons, height, width))).astype(bool)


def disc(size: int, *radii: float) -> np.ndarray:
    """Discs around the middle: inside of the first radius, a hole inside of the second, filled inside of the third."""
    ys, xs = np.mgrid[:size, :size] - (size - 1) / 2
    return sum(np.hypot(ys, xs) < radius for radius in radii) % 2 == 1


@pytest.mark.parametrize(
    "mask",
    [disc(20, 8), disc(20, 8, 4), disc(30, 13, 9, 5), disc(9, 0.9), np.ones((4, 5), bool), np.eye(6, dtype=bool)],
    ids=["disc", "ring", "ring around a disc", "pixel", "whole image", "corners that touch"],
)
def test_polygons_cover_the_mask(mask: np.ndarray):
    assert (drawn(mask_polygons(mask), *mask.shape) == mask).all()


def test_polygons_of_nothing():
    assert mask_polygons(np.zeros((3, 3), bool)) == []


def mask_rcnn(**keys: object) -> CfgNode:
    cfg = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    add_psf_config(cfg)
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", "cpu"
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 11
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (128,), "none"
    cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = 2, 0
    for key, value in keys.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_detectron2s_mapper(mask_format: str):
    """Image and masks are those of the scene, whose shorter side of 96 or 128 stays as it is."""
    dicts = DatasetCatalog.get("psf_shapes_train")
    num_seen = 0
    for index in range(12):
        scene = make_scene(index, split="train")
        cfg = mask_rcnn(INPUT__MASK_FORMAT=mask_format, INPUT__MIN_SIZE_TRAIN=(min(scene.labels.shape),))
        found = DatasetMapper(cfg, is_train=True)(pickle.loads(pickle.dumps(dicts[index])))  # as a worker gets it
        assert (found["image"].numpy() == scene.image[..., ::-1].transpose(2, 0, 1)).all()
        things = [one for one in scene.segments if one["isthing"] and not one["iscrowd"]]
        instances = found["instances"]
        assert instances.gt_classes.tolist() == [one["category_id"] for one in things]
        for row, one in enumerate(things):
            mask = instances.gt_masks[row]
            pixels = (
                mask.tensor[0].numpy() if mask_format == "bitmask" else drawn(mask.polygons[0], *scene.labels.shape)
            )
            assert (pixels == (scene.labels == one["id"])).all()
            num_seen += 1
    assert num_seen > 20


def test_dicts_are_those_of_the_scenes():
    dicts = DatasetCatalog.get("psf_shapes_train")
    for index in (0, 7, 9_999):
        scene, one = make_scene(index, split="train"), dicts[index]
        assert (one["height"], one["width"]) == scene.labels.shape
        with PathManager.open(one["file_name"], "rb") as file:
            assert (np.asarray(Image.open(file)) == scene.image).all()
        things = [segment for segment in scene.segments if segment["isthing"]]
        assert len(one["annotations"]) == len(list(one["annotations"])) == len(things)
    assert PathManager.isfile(dicts[0]["file_name"]) and not PathManager.exists("psf-shapes://train/x.png")
    with pytest.raises(ValueError, match=r"^psf-shapes://train/x\.png: expected psf-shapes://SPLIT/INDEX\.png"):
        PathManager.open("psf-shapes://train/x.png", "rb")


@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")  # of Detectron2's anchors
@pytest.mark.parametrize(
    "mapper", [lambda cfg: DatasetMapper(cfg, is_train=True), lambda cfg: build_mapper(cfg, is_train=True)],
    ids=["Detectron2's mapper", "psf's mapper"],
)  # fmt: skip
def test_mask_rcnn_trains_on_the_scenes(mapper: Callable[[CfgNode], Callable]):
    cfg = mask_rcnn(INPUT__PSF_INSTANCES="things", INPUT__MASK_FORMAT="bitmask")
    dicts = DatasetCatalog.get("psf_shapes_train")[:4]
    batch = next(iter(build_detection_train_loader(cfg, dataset=dicts, mapper=mapper(cfg))))
    torch.manual_seed(0)
    with EventStorage():
        losses = build_model(cfg)(batch)
    assert losses.keys() == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"}
    assert all(value.isfinite() for value in losses.values()) and losses["loss_mask"] > 0
