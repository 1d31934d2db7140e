"""Processes on the CPU, started by Detectron2's launch and by torchrun; and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from psf.engine import argument_parser, launch, main
from tests.conftest import RunPython
from tests.engine.conftest import ParseArgs


def refuse(args: object) -> None:
    raise AssertionError("must not be called")


@pytest.mark.parametrize("present", [0, 2])
def test_more_gpus_than_there_are(present: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: present)
    args = argument_parser().parse_args(["--num-gpus", "3"])
    with pytest.raises(
        ValueError, match=f"--num-gpus 3 needs 3 GPUs, this machine has {present}; give --num-gpus {present}"
    ):
        launch(refuse, args)


def test_processes_are_for_the_cpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    args = argument_parser().parse_args(["--num-gpus", "1", "--num-processes", "2"])
    with pytest.raises(ValueError, match="--num-processes 2 is for the CPU"):
        launch(refuse, args)


def test_one_process_runs_here_and_leaves_the_environment_alone():
    seen = []
    before = dict(os.environ)
    launch(seen.append, argument_parser().parse_args(["--num-gpus", "0"]))
    assert len(seen) == 1
    assert dict(os.environ) == before


def results_of_one_process(parse_args: ParseArgs, tmp_path: Path) -> dict:
    main(parse_args("--eval-only", "OUTPUT_DIR", str(tmp_path / "one")))
    return json.loads((tmp_path / "one" / "results.json").read_text())


@pytest.mark.parametrize("by", ["detectron2", "torchrun"])
def test_two_processes_train_and_gather_results(
    by: str,
    mini: str,
    mini_root: Path,
    config_file: Path,
    parse_args: ParseArgs,
    tmp_path: Path,
    run_python: RunPython,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("PSF_TEST_MINI", str(mini_root))
    run = ["--config-file", str(config_file), "--num-gpus", "0", "OUTPUT_DIR", str(tmp_path / "two")]
    if by == "detectron2":
        flags = ["--num-processes", "2", "--dist-url", "auto"]
        done = run_python("-m", "tests.mini_training", *flags, *run)
    else:
        flags = ["--standalone", "--nproc-per-node", "2", "--module"]
        done = run_python("-m", "torch.distributed.run", *flags, "tests.mini_training", *run)
    assert done.returncode == 0, done.stdout + done.stderr
    two = json.loads((tmp_path / "two" / "results.json").read_text())
    assert two == results_of_one_process(parse_args, tmp_path)
    assert "World size: 2" in (tmp_path / "two" / "log.txt").read_text()
    assert (tmp_path / "two" / "model_final.pth").is_file()


def test_train_net_stops_with_a_clear_line(run_python: RunPython, tmp_path: Path):
    done = run_python("train_net.py", "--config-file", str(tmp_path / "none.yaml"), "--num-gpus", "0")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: --config-file") and "Traceback" not in done.stderr
