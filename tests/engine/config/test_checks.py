"""Values of a config that cannot work are refused before anything is built; keys without effect are named."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode

from psf.engine import build_config
from psf.engine.config.checks import check_config, check_device, keys_without_effect, warn_of_keys_without_effect
from psf.errors import UserError
from tests.models import tiny_config

CONFIGS = Path(__file__).parents[3] / "configs"


def config(key: str, value: Any) -> CfgNode:
    cfg = tiny_config()
    *parents, leaf = key.split(".")
    node = cfg
    for parent in parents:
        node = node[parent]
    node[leaf] = value
    return cfg


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.META_ARCHITECTURE", "foo"),
        ("MODEL.BACKBONE.NAME", "foo"),
        ("MODEL.DEVICE", "foo"),
        ("INPUT.DATASET_MAPPER_NAME", "foo"),
        ("INPUT.CROP.TYPE", "foo"),
        ("INPUT.MIN_SIZE_TRAIN", ()),
        ("INPUT.MIN_SIZE_TRAIN", (0,)),
        ("SOLVER.OPTIMIZER", "foo"),
        ("SOLVER.LR_SCHEDULER_NAME", "foo"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "foo"),
        ("SOLVER.AMP.DTYPE", "foo"),
        ("SOLVER.MAX_ITER", -1),
        ("SOLVER.MAX_ITER", 0),
        ("SOLVER.BASE_LR", float("inf")),
        ("SOLVER.BASE_LR", -0.1),
        ("SOLVER.WEIGHT_DECAY", float("nan")),
        ("SOLVER.IMS_PER_BATCH", 0),
        ("SOLVER.CHECKPOINT_PERIOD", -1),
        ("SOLVER.CHECKPOINTS_TO_KEEP", -1),
        ("SOLVER.MAX_SKIPPED_STEPS", 0),
        ("SOLVER.IMS_PER_BATCH", 2**31 - 1),
        ("INPUT.MIN_SIZE_TRAIN", (10**9,)),
        ("INPUT.MAX_SIZE_TRAIN", 10**9),
        ("INPUT.MAX_SIZE_TEST", 10**9),
        ("TEST.AUG.MAX_SIZE", 10**9),
        ("MODEL.PSF.NUM_THING_QUERIES", 2**20),
        ("MODEL.PSF.HIDDEN_DIM", 2**30),
        ("MODEL.PSF.MASK_DECODER.NUM_THING_LAYERS", 2**30),
        ("DATALOADER.NUM_WORKERS", -1),
        ("DATALOADER.MAX_UNREADABLE_SHARE", 1.5),
        ("INPUT.CROP.SIZE", [0.0, 0.5]),
        ("MODEL.PIXEL_STD", [1.0, 0.0, 1.0]),
        ("TEST.AUG.MIN_SIZES", ()),
        ("TEST.EVAL_PERIOD", -1),
        ("SEED", 2**70),
        ("SEED", -(2**70)),
        ("OUTPUT_DIR", ""),
        ("OUTPUT_DIR", "a\0b"),
        ("SOLVER.GAMMA", -1.0),
        ("SOLVER.BACKBONE_MULTIPLIER", -1.0),
        ("SOLVER.SAMPLING_MULTIPLIER", -1.0),
        ("SOLVER.STEPS", (30, 20)),
        ("SOLVER.MAX_ITER", 2**31),
        ("SOLVER.WARMUP_ITERS", 2**70),
        ("SOLVER.CHECKPOINT_MINUTES", -1.0),
        ("SOLVER.CHECKPOINT_KEEP_EVERY", -1),
        ("DATALOADER.TIMEOUT", -1),
        ("DATALOADER.SAMPLER_TRAIN", "Foo"),
        ("DATALOADER.REPEAT_THRESHOLD", -1.0),
        ("DATALOADER.NUM_WORKERS", 100_000_000),
        ("INPUT.CROP.SIZE", []),
        ("INPUT.CROP.SIZE", [0.5]),
        ("INPUT.PSF_MAX_PIXELS", 2**63),
        ("TEST.DETECTIONS_PER_IMAGE", -2),
        ("TEST.EXPECTED_RESULTS", [1]),
        ("TEST.EXPECTED_RESULTS", [["panoptic_seg", "PQ", "50", 1]]),
        ("VERSION", 1),
        ("DATASETS.TRAIN", "mine"),
        ("DATASETS.TEST", (3,)),
        ("MODEL.PSF.ACTIVATION_CHECKPOINTING", "backbone"),
        ("MODEL.RESNETS.DEPTH", 99),
        ("MODEL.RESNETS.NORM", "foo"),
        ("MODEL.PSF.NUM_HEADS", 0),
        ("MODEL.PSF.HIDDEN_DIM", 0),
        ("MODEL.PSF.IN_FEATURES", []),
        ("MODEL.PSF.NUM_FEATURE_LEVELS", 0),
        ("MODEL.PSF.PIXEL_ENCODER.DROPOUT", 2.0),
        ("MODEL.PSF.PIXEL_ENCODER.NUM_LAYERS", -1),
        ("MODEL.PSF.LOSS.SEG_WEIGHT", -1.0),
        ("MODEL.PSF.NUM_THING_QUERIES", -2),
        ("MODEL.PSF.ACTIVATION_CHECKPOINTING", ["foo"]),
        ("MODEL.PSF.MASK_DECODER.NAME", "foo"),
    ],
)
def test_values_that_cannot_work(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=key.replace(".", r"\.")) as caught:
        check_config(config(key, value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.CHECKPOINT_PERIOD", 0),
        ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", float("inf")),
        ("SEED", 2**31 - 1),
        ("SEED", -1),
        ("DATALOADER.NUM_WORKERS", 1000),
        ("SOLVER.STEPS", (20, 30)),
        ("TEST.EXPECTED_RESULTS", [["panoptic_seg", "PQ", 50, 0.5]]),
        ("MODEL.PSF.NUM_THING_QUERIES", -1),
    ],
)
def test_values_at_the_limits(key: str, value: Any) -> None:
    check_config(config(key, value))


def test_a_text_instead_of_names_has_a_hint() -> None:
    with pytest.raises(UserError, match=r"DATASETS\.TRAIN is the text 'mine': .* with a comma: \('mine',\)"):
        check_config(config("DATASETS.TRAIN", "mine"))


def test_devices() -> None:
    check_device("cpu", "--device", must_exist=True)
    with pytest.raises(UserError, match="--device is 'gpu'"):
        check_device("gpu", "--device")
    with pytest.raises(UserError, match=r"MODEL\.DEVICE is 'cuda:99', but torch finds"):
        check_device("cuda:99", "MODEL.DEVICE", must_exist=True)
    check_device("vulkan", "MODEL.DEVICE")
    with pytest.raises(
        UserError, match=r"MODEL\.DEVICE is 'vulkan', but torch cannot use this device here; use \"cpu\""
    ):
        check_device("vulkan", "MODEL.DEVICE", must_exist=True)


def test_one_warning_names_all_keys(caplog: pytest.LogCaptureFixture) -> None:
    cfg = config("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.7)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH, cfg.GLOBAL.HACK = 9, 0.1, 2.0
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_psf_timm_backbone", 4
    warn_of_keys_without_effect(cfg)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    for text in (
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST (use MODEL.PSF.TEST.INSTANCE.SCORE_THRESH)",
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES (use MODEL.PSF.NUM_STUFF_CLASSES)",
        "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH (use MODEL.PSF.POST_PROCESSOR)",
        "MODEL.BACKBONE.FREEZE_AT (use MODEL.PSF.TIMM.FREEZE)",
        "GLOBAL.HACK",
    ):
        assert text in record.getMessage()
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    assert keys_without_effect(cfg) == {}  # it reads them


@pytest.mark.parametrize("name", sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml")))
def test_configs_of_psf_have_no_keys_without_effect(name: str) -> None:
    assert keys_without_effect(build_config(name, warn=False)) == {}


def test_a_config_that_psf_has_written_has_no_keys_without_effect(tmp_path: Path) -> None:
    """YAML gives nested tuples back as lists."""
    (tmp_path / "config.yaml").write_text(build_config("shapes/psf_tiny.yaml", warn=False).dump())
    assert keys_without_effect(build_config(str(tmp_path / "config.yaml"), warn=False)) == {}
