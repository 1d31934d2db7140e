"""Each key of Detectron2 under INPUT, TEST, DATALOADER, SOLVER and the like is read in a run, or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine.hooks import EvalHook, PreciseBN

from psf.data import build_mapper
from psf.engine import Trainer, build_config
from psf.engine.config.checks import REFUSED as REFUSED_KEYS
from psf.meta_arch import PanopticSegFormer
from tests.mini_set import register_mini_set, unregister_mini_set, write_mini_set
from tests.models import tiny_config

# A value other than the accepted one.
REFUSED = {
    "MODEL.LOAD_PROPOSALS": True,
    "DATASETS.PROPOSAL_FILES_TRAIN": ("proposals.pkl",),
    "DATASETS.PROPOSAL_FILES_TEST": ("proposals.pkl",),
    "MODEL.KEYPOINT_ON": True,
    "TEST.KEYPOINT_OKS_SIGMAS": [0.1],
    "INPUT.MASK_FORMAT": "bitmask",
    "VIS_PERIOD": 20,
}


@pytest.mark.parametrize("key", REFUSED_KEYS)
def test_keys_without_effect_are_refused(key: str) -> None:
    """On the command line, and by the trainer of whoever builds a config in Python."""
    message = rf"{key} is .*, which has no effect: .*; set it to "
    with pytest.raises(ValueError, match=message) as caught:
        build_config("Base-PSF.yaml", [key, str(REFUSED[key])])
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=message):
        Trainer(tiny_config(**{key.replace(".", "__"): REFUSED[key]}))
    other = ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN", key, str(REFUSED[key])]
    assert build_config("Base-PSF.yaml", other).MODEL.META_ARCHITECTURE == "GeneralizedRCNN"  # it may read the key


@pytest.fixture
def mini(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Trainer, "build_writers", lambda trainer: [])  # they open files
    write_mini_set(tmp_path / "mini")
    yield register_mini_set(tmp_path / "mini")
    unregister_mini_set()


def mapper(cfg: CfgNode) -> Any:
    return build_mapper(cfg, True)


def optimizer(cfg: CfgNode) -> Any:
    return Trainer.build_optimizer(cfg, torch.nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("keys", "build", "message"),
    [
        ({"INPUT.RANDOM_FLIP": "both"}, mapper, r"INPUT\.RANDOM_FLIP is 'both'"),
        ({"INPUT.DATASET_MAPPER_NAME": "psf_panoptic_lsj"}, mapper, r"INPUT\.CROP\.ENABLED is True.*IMAGE_SIZE"),
        ({"INPUT.FORMAT": "YUV-BT.601"}, PanopticSegFormer, r"INPUT\.FORMAT is \"YUV-BT\.601\""),
        ({"TEST.DETECTIONS_PER_IMAGE": 0}, PanopticSegFormer, r"TEST\.DETECTIONS_PER_IMAGE is 0"),
        ({"SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "global"}, optimizer, r"CLIP_TYPE is \"global\""),
        ({"SOLVER.OPTIMIZER": "LION"}, optimizer, r"SOLVER\.OPTIMIZER is 'LION'"),
    ],
)
def test_values_without_a_meaning_are_refused(
    keys: dict[str, Any], build: Callable[[CfgNode], Any], message: str
) -> None:
    cfg = tiny_config(**{key.replace(".", "__"): value for key, value in keys.items()})
    with pytest.raises(ValueError, match=message):
        build(cfg)


def trainer_of(mini: str, output: Path, **keys: Any) -> Trainer:
    counts = {"NUM_THING_CLASSES": -1, "NUM_STUFF_CLASSES": -1}
    sets = {"DATASETS__TRAIN": (mini,), "DATASETS__TEST": (mini,), "OUTPUT_DIR": str(output), "MODEL__WEIGHTS": ""}
    return Trainer(tiny_config(counts, DATALOADER__NUM_WORKERS=0, **sets, **keys))


def test_keys_that_detectron2_reads_in_the_trainer(mini: str, tmp_path: Path) -> None:
    trainer = trainer_of(
        mini,
        tmp_path,
        SOLVER__IMS_PER_BATCH=3,
        SOLVER__MAX_ITER=7,
        SOLVER__WARMUP_ITERS=2,
        SOLVER__LR_SCHEDULER_NAME="WarmupCosineLR",
        TEST__EVAL_PERIOD=5,
        TEST__PRECISE_BN__ENABLED=True,
        MODEL__RESNETS__NORM="BN",
        MODEL__BACKBONE__FREEZE_AT=0,
    )
    assert trainer.max_iter == 7
    loader = trainer._trainer.data_loader
    assert loader.batch_size == 3  # ASPECT_RATIO_GROUPING is True: portraits and landscapes in batches of their own
    for _, batch in zip(range(4), loader):
        assert len(batch) == 3 and len({image["width"] > image["height"] for image in batch}) == 1
    kinds = {type(hook) for hook in trainer._hooks}
    assert {PreciseBN, EvalHook} <= kinds
    assert next(hook for hook in trainer._hooks if isinstance(hook, EvalHook))._period == 5
    assert trainer.scheduler._max_iter == 7
    precise = next(hook for hook in trainer._hooks if isinstance(hook, PreciseBN))
    precise.trainer, before = SimpleNamespace(iter=6), torch.get_rng_state()
    precise._num_iter = 1
    precise.update_stats()
    assert torch.equal(torch.get_rng_state(), before)


def test_expected_results_are_verified(mini: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TEST.EXPECTED_RESULTS ends a training whose results are others."""
    expected = [["panoptic_seg", "PQ", 200.0, 1.0]]
    trainer = trainer_of(mini, tmp_path, SOLVER__MAX_ITER=1, SOLVER__IMS_PER_BATCH=1, TEST__EXPECTED_RESULTS=expected)
    monkeypatch.setattr(trainer, "test", lambda cfg, model: {"panoptic_seg": {"PQ": 1.0}})
    with pytest.raises(SystemExit):
        trainer.train()


def test_reference_world_size_scales_the_batch(mini: str, tmp_path: Path) -> None:
    trainer = trainer_of(mini, tmp_path, SOLVER__REFERENCE_WORLD_SIZE=2, SOLVER__IMS_PER_BATCH=4, SOLVER__MAX_ITER=10)
    assert trainer.cfg.SOLVER.IMS_PER_BATCH == 2 and trainer.max_iter == 20
    assert pytest.approx(0.00007) == trainer.cfg.SOLVER.BASE_LR
