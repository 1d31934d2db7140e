"""Every key that psf adds to a config is read by a run, and every config that comes with psf can be loaded."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetMapper

from psf.config import add_psf_config
from psf.data import register_from_config
from psf.engine import Trainer
from psf.engine.config.checks import IGNORED, REFUSED
from psf.engine.merging import with_merging
from psf.inference import MergingThresholds
from tests.mini_set import register_mini_set, unregister_mini_set, write_mini_set
from tests.models import tiny_config

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = sorted((REPOSITORY / "configs").rglob("*.yaml"))

# Between them these have both recipes, both kinds of queries, all three mappers and all of psf's backbones.
RUNS: dict[str, dict[str, Any]] = {
    "coco/psf_R50_24ep": {"SOLVER.AMP.ENABLED": True, "SOLVER.AMP.DTYPE": "bfloat16", "TEST.AUG.ENABLED": True},
    "coco/released/psf_R50_24ep": {},
    "ablations/joint_queries": {"MODEL.PSF.TEST.TILES.SIZE": 64},
    "coco/psf_Swin-T_24ep": {},
    "shapes/psf_tiny": {},
    "ade20k/psf_R50": {"SOLVER.OPTIMIZER": "SGD", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "norm"},
    "cityscapes/psf_R50": {
        "INPUT.CROP.ENABLED": True,
        "MODEL.RESNETS.NORM": "BN",
        "TEST.PRECISE_BN.ENABLED": True,
        "SOLVER.LR_SCHEDULER_NAME": "WarmupStepWithFixedGammaLR",
    },
    "Base-PSF": {"SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR"},
}
# A key that nothing reads, though both of its words occur in the sources.
DEAD = "MODEL.PSF.MATCHER.NAME"


# Keys of Detectron2 that other code than the builders reads: its set-up, a sampler, the end of training, its mapper.
READ_ELSEWHERE = ("CUDNN_BENCHMARK", "SEED", "VERSION", "DATALOADER.REPEAT_*", "TEST.EXPECTED_RESULTS", "MODEL.MASK_ON")


def matches(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def leaves(node: CfgNode, path: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield from leaves(value, f"{path}{key}.") if isinstance(value, CfgNode) else (f"{path}{key}",)


def added_keys() -> set[str]:
    cfg = get_cfg()
    before = set(leaves(cfg))
    add_psf_config(cfg)
    return set(leaves(cfg)) - before


class RecordedNode(CfgNode):
    """A copy of a config that notes which leaves are read by name; its copies, which keep their paths, do, too.

    Copying and dumping, which go through all items, are no reading.
    """

    read: ClassVar[set[str]]

    def __init__(self, node: CfgNode, path: str = "") -> None:
        super().__init__()
        self.__dict__["path"] = path
        for key, value in node.items():
            self[key] = RecordedNode(value, f"{path}{key}.") if isinstance(value, CfgNode) else value

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        if not isinstance(value, CfgNode):
            self.read.add(self.__dict__["path"] + key)
        return value


@pytest.fixture
def dataset(tmp_path: Path) -> Iterator[str]:
    write_mini_set(tmp_path / "mini")
    yield register_mini_set(tmp_path / "mini")
    unregister_mini_set()


def test_each_key_is_read(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By all that a training and an evaluation build: model, optimizer, loaders with their mappers, evaluators."""
    monkeypatch.setattr(RecordedNode, "read", set(), raising=False)
    for check in ("psf.meta_arch.build.check_recipe", "psf.engine.trainer.check_config"):
        monkeypatch.setattr(check, lambda cfg: None)  # a key that is only checked is dead, too
    monkeypatch.setattr(Trainer, "build_writers", lambda trainer: [])  # they open files
    caplog.set_level(logging.INFO)  # the trainer sets up loggers that say nothing
    for number, (name, options) in enumerate(RUNS.items()):
        build_all(recorded(name, dataset, tmp_path / str(number), options), dataset)
    assert {*added_keys(), DEAD} - RecordedNode.read == {DEAD}
    known = [*IGNORED, *REFUSED, *READ_ELSEWHERE]
    of_detectron2 = set(leaves(get_cfg()))
    foreign = {"MODEL.FPN.*"}  # of other backbones; psf warns of them, too
    unread = {key for key in of_detectron2 - RecordedNode.read if not matches(key, [*known, *foreign])}
    assert unread == set(), "add them to IGNORED or REFUSED in psf/engine/config/checks.py"
    assert {key for key in of_detectron2 & RecordedNode.read if matches(key, IGNORED)} == set()


def test_the_base_config_sets_nothing_that_is_not_read(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(RecordedNode, "read", set(), raising=False)
    monkeypatch.setattr(Trainer, "build_writers", lambda trainer: [])
    caplog.set_level(logging.INFO)
    cfg = recorded("Base-PSF", dataset, tmp_path, {})
    build_all(cfg, dataset)
    content = yaml.safe_load((REPOSITORY / "configs" / "Base-PSF.yaml").read_text(encoding="utf-8"))
    assert content.pop("VERSION") == 2  # Detectron2 reads it from the file
    assert set(leaves(CfgNode(content))) - RecordedNode.read == {"MODEL.MASK_ON"}
    DatasetMapper(cfg, is_train=True)  # Detectron2's own, for which the base has it
    assert "MODEL.MASK_ON" in RecordedNode.read


def recorded(name: str, dataset: str, output: Path, options: dict[str, Any]) -> RecordedNode:
    """A config of psf with a tiny model, over the mini set."""
    cfg = tiny_config()
    cfg.merge_from_file(str(REPOSITORY / "configs" / f"{name}.yaml"))
    ours = {"DATASETS.TRAIN": (dataset,), "DATASETS.TEST": (dataset,), "DATALOADER.NUM_WORKERS": 0}
    ours |= {"MODEL.WEIGHTS": "", "MODEL.PSF.NUM_THING_CLASSES": -1, "MODEL.PSF.NUM_STUFF_CLASSES": -1}
    ours |= {"OUTPUT_DIR": str(output), **options}
    cfg.merge_from_list([word for option in ours.items() for word in option])
    cfg.MODEL.PSF.MATCHER.NAME = "dead"
    return RecordedNode(cfg)


def build_all(cfg: CfgNode, dataset: str) -> None:
    """Model, optimizer, loaders with their mappers, evaluators, and the config after tuning."""
    register_from_config(cfg)
    with_merging(cfg, MergingThresholds(1.0, 2.0, 0.25, 0.6), MergingThresholds(1.0, 2.0, 0.25, 0.8))
    Trainer(cfg).resume_or_load()
    Trainer.build_test_loader(cfg, dataset)
    Trainer.build_evaluator(cfg, dataset)


def test_add_psf_config_twice_keeps_what_is_set() -> None:
    cfg = get_cfg()
    add_psf_config(cfg)
    cfg.MODEL.PSF.HIDDEN_DIM = 96
    cfg.INPUT.DATASET_MAPPER_NAME = "somebody_elses"
    add_psf_config(cfg)
    assert cfg.MODEL.PSF.HIDDEN_DIM == 96
    assert cfg.INPUT.DATASET_MAPPER_NAME == "somebody_elses"


def test_there_are_configs() -> None:
    assert CONFIGS


@pytest.mark.parametrize("file", CONFIGS, ids=[file.relative_to(REPOSITORY / "configs").as_posix() for file in CONFIGS])
def test_config_loads(file: Path) -> None:
    cfg = get_cfg()
    add_psf_config(cfg)
    cfg.merge_from_file(str(file))  # raises on keys that nobody defined, and on values of another type
    assert cfg.MODEL.META_ARCHITECTURE == "PanopticSegFormer"
