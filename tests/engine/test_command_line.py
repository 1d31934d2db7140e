"""A mistake on the command line is one line and exit code 2; a fault of the program keeps its traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from psf.engine import command_line, run_command_line


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a run on the CPU says of the mistake, in one line; torch may have warned on stderr before."""
    assert run_command_line(words) == 2
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    return errors.splitlines()[-1]


def test_missing_weights(mini: str, config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = ["--config-file", str(config_file), "--num-gpus", "0", "--eval-only", "OUTPUT_DIR", str(tmp_path / "output")]
    line = refused(capsys, *run, "MODEL.WEIGHTS", "none.pth")
    assert line.startswith("error: none.pth: no such checkpoint file (MODEL.WEIGHTS")


def test_value_of_another_type(config_file: Path, capsys: pytest.CaptureFixture[str]):
    """yacs finds this one."""
    assert "SOLVER.MAX_ITER" in refused(
        capsys, "--config-file", str(config_file), "--num-gpus", "0", "SOLVER.MAX_ITER", "x"
    )


def test_success(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(command_line, "main", lambda args: None)
    assert run_command_line(["--num-gpus", "0"]) == 0


def test_other_libraries_keep_their_traceback(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(command_line, "main", lambda args: torch.nn.Conv2d(3, 4, 1, groups=2))
    with pytest.raises(ValueError, match="divisible by groups"):
        run_command_line(["--num-gpus", "0"])
