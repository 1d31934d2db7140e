"""A mistake on the command line is one line and exit code 2; a fault of the program keeps its traceback."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import psf
from psf.commands.training import train
from psf.commands.training.train import main as psf_train
from tests.mini_set import NAME, unregister_mini_set

ONE_PROCESS = ("--num-gpus", "0", "--num-processes", "1")


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a run on the CPU says of the mistake, in one line; torch may have warned on stderr before."""
    assert psf_train(words) == 2
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    return errors.splitlines()[-1]


def test_missing_weights(mini: str, config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = ["--config-file", str(config_file), *ONE_PROCESS, "--eval-only", "OUTPUT_DIR", str(tmp_path / "output")]
    line = refused(capsys, *run, "MODEL.WEIGHTS", "none.pth")
    assert line.startswith("error: none.pth: no such checkpoint file (MODEL.WEIGHTS")


def test_value_of_another_type(config_file: Path, capsys: pytest.CaptureFixture[str]):
    """yacs finds this one."""
    assert "SOLVER.MAX_ITER" in refused(capsys, "--config-file", str(config_file), *ONE_PROCESS, "SOLVER.MAX_ITER", "x")


@pytest.mark.parametrize("flags", [(), ("--eval-only",)])
@pytest.mark.parametrize("workers", ["0", "1"])
def test_damaged_file(
    flags: tuple[str, ...],
    workers: str,
    mini: str,
    mini_root: Path,
    config_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    """Not the first, which is read before anything else: a worker of the loader meets it.

    One image may be damaged in training; in evaluation, the results of the others are kept.
    """
    for number in range(1, 5):
        (mini_root / "images" / f"{number}.png").write_bytes(b"no image")
    keys = ["DATALOADER.NUM_WORKERS", workers, "OUTPUT_DIR", str(tmp_path / "output")]
    line = refused(capsys, "--config-file", str(config_file), *ONE_PROCESS, *flags, *keys)
    if flags:
        assert line == (
            f"error: 4 images of DATASETS.TEST could not be read (named above); the results in {tmp_path}/output are "
            "those of the others"
        )
        assert json.loads((tmp_path / "output/results.json").read_text())["unreadable"] == {"images": 4}
    else:
        assert re.fullmatch(
            rf"error: {mini_root}/images/[1-4]\.png: empty, corrupt or not an image \(.*\); expected PNG, JPEG, "
            r"TIFF or the like \(2 images cannot be read; DATALOADER\.MAX_UNREADABLE_SHARE allows 1\)",
            line,
        )


@pytest.mark.parametrize("flags", [(), ("--eval-only",)])
def test_swapped_folders(
    flags: tuple[str, ...], mini_root: Path, config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """PNGS and IMAGES exchanged in --register."""
    register = f"{NAME}={mini_root}/panoptic.json,{mini_root}/images,{mini_root}/panoptic"
    keys = ["DATALOADER.NUM_WORKERS", "1", "OUTPUT_DIR", str(tmp_path / "output")]
    run = ["--config-file", str(config_file), *ONE_PROCESS, *flags, "--register", register, *keys]
    try:
        assert psf_train(run) == 2
    finally:
        unregister_mini_set()
    output = capsys.readouterr()
    assert output.err.splitlines()[-1].startswith(f"error: {mini_root}/images/0.png: the PNG has ids that")
    assert "Traceback" not in output.out + output.err


def test_faults_of_other_libraries_in_workers_keep_their_traceback(monkeypatch: pytest.MonkeyPatch):
    def fail(args: object) -> None:
        frames = f'  File "{psf.__file__}", line 1, in f\n  File "/site/numpy/core.py", line 2, in g\n    h()\n'
        raise ValueError(
            f"Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n{frames}"
            "ValueError: shapes\n"
        )

    monkeypatch.setattr(train, "train_or_evaluate", fail)
    with pytest.raises(ValueError, match="shapes"):
        psf_train([*ONE_PROCESS])


def test_success(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(train, "train_or_evaluate", lambda args: None)
    assert psf_train([*ONE_PROCESS]) == 0


def test_other_libraries_keep_their_traceback(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(train, "train_or_evaluate", lambda args: torch.nn.Conv2d(3, 4, 1, groups=2))
    with pytest.raises(ValueError, match="divisible by groups"):
        psf_train([*ONE_PROCESS])
