"""Processes on the CPU, started by Detectron2's launch and by torchrun; and what is refused."""

from __future__ import annotations

import argparse
import importlib
import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm
from torch.multiprocessing import ProcessRaisedException

from psf.engine import argument_parser, build_config, launch, main, report_mistakes, setup
from tests.conftest import RunPython
from tests.engine.conftest import ParseArgs

launch_module = importlib.import_module("psf.engine.launch")  # the package has the function under this name


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
    launch(seen.append, argument_parser().parse_args(["--num-gpus", "0", "--num-processes", "1"]))
    assert len(seen) == 1
    assert dict(os.environ) == before


def note(folder: str, args: argparse.Namespace) -> None:
    """What a process is told about itself."""
    found = (comm.get_world_size(), args.num_processes, args.process_choice, os.environ["OMP_NUM_THREADS"])
    Path(folder, str(comm.get_rank())).write_text(repr(found))


@pytest.mark.parametrize(("eval_only", "expected"), [(False, 2), (True, 3)])
def test_auto_uses_the_cores(
    eval_only: bool, expected: int, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Training splits the batch of 2, so a third core stays free; evaluation has no batch to split."""
    monkeypatch.setattr(launch_module, "usable_cores", lambda: 3)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    args = argument_parser().parse_args(["--config-file", str(config_file), "--num-gpus", "0"])
    args.eval_only = eval_only
    launch(partial(note, str(tmp_path)), args)
    reason = "" if eval_only else " (SOLVER.IMS_PER_BATCH 2 cannot be shared by more)"
    line = f"{expected} processes of 1 thread each on 3 cores{reason}; --num-processes N to choose"
    found = [(tmp_path / str(rank)).read_text() for rank in range(expected)]
    assert found == [repr((expected, expected, line, "1"))] * expected


def test_the_choice_is_logged(parse_args: ParseArgs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launch_module, "usable_cores", lambda: 1)
    launch(setup, parse_args())
    assert "1 process of 1 thread on 1 core; --num-processes N to choose" in (tmp_path / "output/log.txt").read_text()


@pytest.mark.parametrize(("words", "expected"), [((), "auto"), (("--num-machines", "2"), None)])
def test_jobs_side_by_side_have_ports_of_their_own(
    words: tuple[str, ...], expected: str | None, monkeypatch: pytest.MonkeyPatch
):
    """On one machine a free port is taken; several machines need an address that all of them are given."""
    seen = []
    monkeypatch.setattr(launch_module, "detectron2_launch", lambda main, **rest: seen.append(rest["dist_url"]))
    args = argument_parser().parse_args(["--num-gpus", "0", "--num-processes", "2", *words])
    launch(refuse, args)
    assert seen == [expected or argument_parser().get_default("dist_url")]


def find_mistake(args: argparse.Namespace) -> None:
    if comm.get_rank() == 1:
        build_config("no such file")
    comm.synchronize()


def find_fault(args: argparse.Namespace) -> None:
    torch.nn.Conv2d(3, 4, 1, groups=2)


def test_a_mistake_in_another_process_is_one_line(capfd: pytest.CaptureFixture[str]):
    args = argument_parser().parse_args(["--num-gpus", "0", "--num-processes", "2"])
    assert report_mistakes(lambda: launch(find_mistake, args)) == 2
    errors = capfd.readouterr().err
    assert errors.splitlines()[-1].startswith("error: --config-file 'no such file' does not exist")
    assert "Traceback" not in errors


def test_a_fault_in_another_process_keeps_its_traceback():
    args = argument_parser().parse_args(["--num-gpus", "0", "--num-processes", "2"])
    with pytest.raises(ProcessRaisedException, match="divisible by groups"):
        report_mistakes(lambda: launch(find_fault, args))


@pytest.mark.parametrize("word", ["0", "-1", "2.5", "all"])
def test_numbers_of_processes(word: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        argument_parser().parse_args(["--num-processes", word])
    assert 'expected "auto" or a number from 1' in capsys.readouterr().err
    assert argument_parser().parse_args(["--num-processes", "auto"]).num_processes is None


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
        flags = ["--num-processes", "2"]
        done = run_python("-m", "tests.mini_training", *flags, *run)
    else:
        flags = ["--standalone", "--nproc-per-node", "2", "--module"]
        done = run_python("-m", "torch.distributed.run", *flags, "tests.mini_training", *run)
    assert done.returncode == 0, done.stdout + done.stderr
    two = json.loads((tmp_path / "two" / "results.json").read_text())
    assert two == results_of_one_process(parse_args, tmp_path)
    assert "World size: 2" in (tmp_path / "two" / "log.txt").read_text()
    assert (tmp_path / "two" / "model_final.pth").is_file()

    resumed = tmp_path / "two" / "log.txt"  # with another number of processes
    main(parse_args("--resume", "SOLVER.MAX_ITER", "3", "OUTPUT_DIR", str(tmp_path / "two")))
    assert "Starting training from iteration 2" in resumed.read_text()
    assert torch.load(tmp_path / "two" / "model_final.pth", weights_only=True)["iteration"] == 2


def test_train_net_stops_with_a_clear_line(run_python: RunPython, tmp_path: Path):
    done = run_python("train_net.py", "--config-file", str(tmp_path / "none.yaml"), "--num-gpus", "0")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: --config-file") and "Traceback" not in done.stderr
