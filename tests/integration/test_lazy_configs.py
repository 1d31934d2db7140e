"""The models under configs/lazy are those of the yaml configs: same parts, same numbers."""

from __future__ import annotations

import argparse
import copy
import json
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import default_setup
from detectron2.modeling import build_model
from omegaconf import DictConfig
from torch import nn

from psf import PanopticSegFormer
from psf.engine import build_config
from tests.models import gradients, make_input

LAZY = Path(__file__).resolve().parents[2] / "configs" / "lazy"
TWINS = {
    "panoptic_segformer": "coco/psf_R50_24ep.yaml",
    "released": "coco/released/psf_R50_24ep.yaml",
    "released_swin_large": "coco/released/psf_Swin-L_24ep.yaml",
    "released_pvt_v2_b5": "coco/released/psf_PVTv2-B5_24ep.yaml",
    "efficientnet_lite0": "coco/psf_EfficientNet-Lite0_24ep.yaml",
}
# What is made small in both, as the yaml and as the lazy config call it.
SMALL = {
    "HIDDEN_DIM": ("dim", 64),
    "NUM_THING_QUERIES": ("location_decoder.num_queries", 8),
    "PIXEL_ENCODER.NUM_LAYERS": ("pixel_encoder.num_layers", 1),
    "PIXEL_ENCODER.FEEDFORWARD_DIM": ("pixel_encoder.feedforward_dim", 32),
    "PIXEL_ENCODER.DROPOUT": ("pixel_encoder.dropout", 0.0),
    "LOCATION_DECODER.NUM_LAYERS": ("location_decoder.num_layers", 2),
    "LOCATION_DECODER.DROPOUT": ("location_decoder.dropout", 0.0),
    "MASK_DECODER.NUM_THING_LAYERS": ("thing_decoder.num_layers", 2),
    "MASK_DECODER.NUM_STUFF_LAYERS": ("stuff_decoder.num_layers", 1),
}


def lazy_model(name: str) -> DictConfig:
    return LazyConfig.load(str(LAZY / f"{name}.py")).model


def settings(part: Any) -> Any:
    """A part of a model in plain values: what it was built with, but for its weights."""
    if isinstance(part, nn.Module):
        own = {key: value for key, value in vars(part).items() if not key.startswith("_")}
        return type(part).__name__, {key: settings(value) for key, value in own.items()}
    if isinstance(part, (list, tuple)):
        return [settings(value) for value in part]
    if type(part).__module__.startswith(("psf.", "timm.")) and not isinstance(part, Enum):
        return type(part).__name__, {key: settings(value) for key, value in vars(part).items()}
    if callable(part) or isinstance(part, (torch.device, torch.memory_format)):
        return str(part)
    return part


@pytest.mark.parametrize("name", TWINS)
def test_parts_and_settings(name: str):
    """At full size, of every module and of everything else that the model holds."""
    cfg = build_config(TWINS[name], ["MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        ours, theirs = instantiate(lazy_model(name)), build_model(cfg)
    assert isinstance(ours, PanopticSegFormer)
    modules = dict(theirs.named_modules())
    found = dict(ours.named_modules())
    assert list(found) == list(modules)
    for key, module in modules.items():
        assert settings(found[key]) == settings(module), key
    shapes = [{k: v.shape for k, v in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    trained = [[k for k, p in model.named_parameters() if p.requires_grad] for model in (ours, theirs)]
    assert trained[0] == trained[1]


@pytest.mark.parametrize("name", ["panoptic_segformer", "released", "efficientnet_lite0"])
def test_losses_and_results(name: str):
    """With the same weights, a training step and a prediction are equal."""
    cfg, lazy = build_config(TWINS[name], ["MODEL.DEVICE", "cpu"]), lazy_model(name)
    for key, (path, value) in SMALL.items():
        cfg.merge_from_list([f"MODEL.PSF.{key}", value])
        *parents, leaf = path.split(".")
        node = lazy
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    torch.manual_seed(0)
    theirs, ours = build_model(cfg), instantiate(lazy)
    ours.load_state_dict(theirs.state_dict())  # strict
    inputs = [make_input(64, 96, things=2, stuff=2, first_stuff_id=80), make_input(50, 70, things=1, stuff=0, seed=1)]
    (losses, found), (expected, gradient) = (gradients(model, copy.deepcopy(inputs)) for model in (ours, theirs))
    torch.testing.assert_close(losses, expected, rtol=0, atol=0)
    torch.testing.assert_close(found, gradient, rtol=0, atol=0)
    with torch.no_grad():
        [result], [other] = (model.eval()(inputs[:1]) for model in (ours, theirs))
    assert torch.equal(result["panoptic_seg"][0], other["panoptic_seg"][0])
    assert result["panoptic_seg"][1] == other["panoptic_seg"][1]
    assert torch.equal(result["sem_seg"], other["sem_seg"])
    assert torch.equal(result["instances"].pred_masks, other["instances"].pred_masks)
    assert torch.equal(result["instances"].pred_boxes.tensor, other["instances"].pred_boxes.tensor)


def test_every_model_has_a_twin():
    """Files with a model; backbones.py has none, and train_shapes.py is a training."""
    models = {path.stem for path in LAZY.glob("*.py") if "model" in LazyConfig.load(str(path))}
    assert models == {*TWINS, "train_shapes"}


def test_training_by_detectron2s_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """tools/lazyconfig_train_net.py, which is in the wheel of `make setup`: two iterations, and an evaluation."""
    script = pytest.importorskip("tools.lazyconfig_train_net", reason="tools of Detectron2's repository")
    evaluate, results = script.do_test, []
    monkeypatch.setattr(script, "do_test", lambda *arguments: results.append(evaluate(*arguments)))
    cfg = LazyConfig.load(str(LAZY / "train_shapes.py"))
    cfg = LazyConfig.apply_overrides(cfg, ["train.max_iter=2", "train.log_period=1", "train.device=cpu"])
    cfg.train.output_dir = str(tmp_path)
    cfg.model.location_decoder.num_queries = 5
    cfg.dataloader.train.update(total_batch_size=2, num_workers=0)
    cfg.dataloader.test.num_workers = 0
    cfg.dataloader.test.mapper.augmentations[0].short_edge_length = [32]  # 100 images
    default_setup(cfg, argparse.Namespace(config_file=""))
    script.do_train(argparse.Namespace(resume=False), cfg)
    first, second, *_ = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [first["iteration"], second["iteration"]] == [0, 1]
    for name in ("total_loss", "loss_det_cls", "loss_cls_things", "loss_seg_stuff"):
        assert 0 < first[name] < 100 and first[name] != second[name]
    [evaluation] = results  # at the end
    assert 0 <= evaluation["panoptic_seg"]["PQ"] <= 100
    trained = DetectionCheckpointer(instantiate(cfg.model)).load(str(tmp_path / "model_final.pth"))
    assert trained["iteration"] == 1
