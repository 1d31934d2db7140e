"""What a run shows on the screen, and what only log.txt has."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from detectron2.config import CfgNode
from detectron2.engine import HookBase

from psf.engine import argument_parser, build_config, run_log
from psf.engine.run_log import TimeLeftHook, log_run, set_up_loggers
from tests.conftest import REPOSITORY, RunPython
from tests.mini_set import NAME
from tests.models import tiny_model


def test_a_training_begins_with_one_screen(config_file: Path, mini_root: Path, run_python: RunPython) -> None:
    """Two processes; no warning of another package, no dump of environment and config."""
    folder = config_file.parent
    words = ["--config-file", str(config_file), "--num-gpus", "0", "--num-processes", "2", "--import", "tests.mini_set"]
    words += ["--register", f"{NAME}={mini_root}/panoptic.json,{mini_root}/panoptic,{mini_root}/images"]
    keys = ["OUTPUT_DIR", "out", "DATALOADER.NUM_WORKERS", "1"]
    done = run_python("-m", "psf", "train", *words, *keys, path=[REPOSITORY], cwd=folder)
    assert done.returncode == 0, done.stderr
    shown, log = done.stdout, (folder / "out" / "log.txt").read_text()
    assert "Warning" not in shown + done.stderr
    before, _, after = shown.partition("The first iteration took")
    assert after and len(before.splitlines()) <= 24
    for text in (
        f"{NAME}: 5 images",
        "2 processes",
        "random",
        "2 iterations of 2 images (0.8 epochs)",
        "2 things (ball, box)",
    ):
        assert text in before, text
    for text in ("Environment info", "SOLVER:", "copypaste", "Evaluate annotation type"):
        assert text in log and text not in shown, text
    assert "| panoptic_seg " in after and "Training is finished; the model is out/model_final.pth" in after


def test_warnings_of_all_packages_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_up_loggers(str(tmp_path))
    try:
        for name in ("detectron2.some.part", "fvcore.common.checkpoint", "psf.part"):
            logging.getLogger(name).warning("%s warns", name)
            logging.getLogger(name).info("%s informs", name)
        logging.getLogger("psf.part").debug("a detail")
    finally:
        logs = [logging.getLogger(name) for name in ("fvcore", "detectron2", "psf")]
        for log in logs:
            for handler in list(log.handlers):
                log.removeHandler(handler)
    shown, text = capsys.readouterr().out, (tmp_path / "log.txt").read_text()
    assert [word for word in shown.split() if word in ("warns", "informs", "detail")] == ["warns"] * 3 + ["informs"]
    assert text.count("warns") == text.count("informs") == 3 and text.count("a detail") == 1


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"TEST.EVAL_PERIOD": 30}, "every 30 iterations and at the end"),
        ({"TEST.EVAL_PERIOD": 0}, "images, at the end"),
        ({"SOLVER.AMP.ENABLED": True, "SOLVER.AMP.DTYPE": "bfloat16"}, "mixed precision (bfloat16)"),
        ({"MODEL.PSF.MSDA": "reference"}, "deformable attention  reference"),
        ({"SOLVER.CHECKPOINT_PERIOD": 0}, "checkpoints           at the end only"),
        ({}, "parameters, 0.1 million"),
    ],
)
def test_the_summary_follows_the_config(
    keys: dict[str, object], expected: str, mini: str, caplog: pytest.LogCaptureFixture
) -> None:
    (cfg, args), model = run_of(mini, keys), tiny_model()
    model.pixel_encoder.requires_grad_(False)
    with caplog.at_level(logging.INFO, logger="psf"):
        log_run(cfg, args, model, source="random", num_images=4)
    assert expected in caplog.text


def run_of(name: str, keys: dict[str, object]) -> tuple[CfgNode, argparse.Namespace]:
    """The tiny model on the mini set."""
    args = argument_parser().parse_args(["--config-file", "shapes/psf_tiny.yaml", "--num-gpus", "0"])
    words = [str(word) for pair in keys.items() for word in pair]
    cfg = build_config(args.config_file, ["DATASETS.TRAIN", name, "DATASETS.TEST", name, *words], warn=False)
    cfg.MODEL.DEVICE = "cpu"
    return cfg, args


def test_time_left(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The first iteration, with the loaders' start, is not part of the estimate."""
    clock = iter([100.0, 160.0, 162.5])  # start, after iteration 5, after iteration 15
    monkeypatch.setattr(run_log, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    hook: HookBase = TimeLeftHook()
    hook.trainer = SimpleNamespace(iter=5, start_iter=5, max_iter=14_416)  # type: ignore[assignment]  # resumed
    hook.before_train()
    with caplog.at_level(logging.INFO):
        hook.after_step()
        hook.trainer.iter = 15
        hook.after_step()
    # 2.5 s for 10 iterations; 14,416 - 16 are left: 3,600 s
    assert [record.getMessage().partition(", at about")[0] for record in caplog.records] == [
        "The first iteration took 60.0 s",
        "0.25 s an iteration: the last one ends in 1:00:00",
    ]
