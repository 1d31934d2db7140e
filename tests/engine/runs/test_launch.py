"""Processes on the CPU, started by Detectron2's launch and by torchrun; and what is refused."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import signal
import socket
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from torch import distributed as dist
from torch.multiprocessing import ProcessRaisedException
from torch.utils.data import DataLoader

from psf.commands import run_command
from psf.engine import argument_parser, build_config, check_run, launch, main, setup
from psf.engine.hooks import Stopped
from psf.engine.runs.launch import choose_processes, usable_cores
from psf.engine.train_step import is_of_lost_process, is_of_timeout
from psf.errors import UserError
from tests.conftest import RunPython
from tests.engine.conftest import ParseArgs
from tests.mini_set import unregister_mini_set

launch_module = importlib.import_module("psf.engine.runs.launch")  # the package has the function under this name


def refuse(args: object) -> None:
    raise AssertionError("must not be called")


@pytest.mark.parametrize("present", [0, 2])
def test_more_gpus_than_there_are(present: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: present)
    args = argument_parser().parse_args(["--num-gpus", "3"])
    with pytest.raises(
        ValueError, match=f"--num-gpus 3 needs 3 GPUs, this machine has {present}; use --num-gpus {present}"
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


@pytest.mark.parametrize("flags", [("--num-gpus", "2"), ("--num-gpus", "0", "--num-processes", "2")])
def test_a_port_that_is_taken(flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch):
    """That of --dist-url is reported in one line; without --dist-url, no fixed port is used."""
    seen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(launch_module, "detectron2_launch", lambda main, **rest: seen.append(rest["dist_url"]))
    launch(refuse, argument_parser().parse_args([*flags]))
    assert seen == ["auto"]
    with socket.create_server(("127.0.0.1", 0)) as other:
        url = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"^--dist-url {url}: its port cannot be used \(Address already in use\)"):
            launch(refuse, argument_parser().parse_args([*flags, "--dist-url", url]))
    assert len(seen) == 1


class TestCheckBeforeProcessesStart:
    @pytest.fixture(autouse=True)
    def _no_processes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(launch_module, "detectron2_launch", refuse)

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("SOLVER.IMS_PER_BATCH", "3"), "IMS_PER_BATCH is 3: expected a positive multiple of 2, the number of pr"),
            (("SOLVER.IMS_PER_BATCH", "0"), "IMS_PER_BATCH is 0: expected"),
            (("SOLVER.REFERENCE_WORLD_SIZE", "4"), "is 2: expected a positive multiple of 4, SOLVER.REFERENCE_WORLD"),
            (("SOLVER.MAX_ITERS", "1"), "unknown config key 'SOLVER.MAX_ITERS'"),
            (("--register", "a=none.json,b,c", "DATASETS.TEST", "a"), "none.json"),
            (("DATASETS.TRAIN", "nothing"), "no dataset is registered as 'nothing'"),
            (("DATASETS.TRAIN", "()"), "DATASETS.TRAIN is empty"),
            (("--eval-only", "DATASETS.TEST", "()"), "DATASETS.TEST is empty"),
            (("MODEL.WEIGHTS", "none.pth"), "none.pth: no such checkpoint file"),
            (("MODEL.WEIGHTS", "none.pth?a=1"), "the only option of a file is"),
            (("DATALOADER.SAMPLER_TRAIN", "X"), "SAMPLER_TRAIN is 'X'"),
            (("SOLVER.CHECKPOINT_MINUTES", "-1.0"), "CHECKPOINT_MINUTES is -1.0"),
            (("SOLVER.AMP.ENABLED", "True"), 'SOLVER.AMP.DTYPE is "float16" and MODEL.DEVICE "cpu"'),
        ],
    )
    def test_mistakes(self, words: tuple[str, ...], message: str, mini: str, parse_args: ParseArgs, tmp_path: Path):
        try:
            with pytest.raises(UserError, match=message):
                launch(main, parse_args("--num-processes", "2", *words), check=check_run)
        finally:
            if "a" in DatasetCatalog:
                unregister_mini_set("a")
        assert not (tmp_path / "output").exists()

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("MODEL.PSF.NUM_STUFF_CLASSES", "50"), "NUM_STUFF_CLASSES is 50, but dataset"),
            (("MODEL.PSF.LOSS.BALANCE", "x"), 'LOSS.BALANCE is "x"'),
            (("MODEL.PSF.IN_FEATURES", "['res9']"), r"contain \['res9'\]"),
            (("SOLVER.BACKBONE_LAYER_DECAY", "-1.0"), "BACKBONE_LAYER_DECAY is -1.0"),
            (("TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "()"), "TEST.AUG.MIN_SIZES is"),
        ],
    )
    def test_mistakes_in_the_model(self, words: tuple[str, ...], message: str):
        """The model is built without memory, and random numbers and loggers are as before."""
        args = ["--config-file", "shapes/psf_tiny.yaml", "--num-gpus", "0", "--num-processes", "2", *words]
        before = torch.get_rng_state()
        with pytest.raises(UserError, match=message):
            launch(main, argument_parser().parse_args(args), check=check_run)
        assert torch.equal(torch.get_rng_state(), before)
        assert logging.getLogger("psf").isEnabledFor(logging.WARNING)

    def test_weights_that_are_no_checkpoint(self, mini: str, parse_args: ParseArgs, tmp_path: Path):
        (tmp_path / "page.pth").write_text("<!DOCTYPE html>")
        with pytest.raises(UserError, match=r"page\.pth: damaged, or not written by torch\.save: an HTML page"):
            launch(
                main, parse_args("--num-processes", "2", "MODEL.WEIGHTS", str(tmp_path / "page.pth")), check=check_run
            )

    def test_another_training_in_the_folder(self, mini: str, parse_args: ParseArgs, tmp_path: Path):
        (tmp_path / "output").mkdir()
        (tmp_path / "output" / "model_final.pth").write_bytes(b"weights")
        with pytest.raises(UserError, match="holds another training"):
            launch(main, parse_args("--num-processes", "2"), check=check_run)

    @pytest.mark.parametrize("rank", [0, 1])
    def test_torchrun(self, rank: int, mini: str, parse_args: ParseArgs, monkeypatch: pytest.MonkeyPatch):
        """Before they join; the first process of the machine reports it, while the others wait to be ended."""
        for name, value in {"RANK": 2 + rank, "WORLD_SIZE": 4, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2}.items():
            monkeypatch.setenv(name, str(value))
        waited: list[float] = []
        monkeypatch.setattr(launch_module.time, "sleep", waited.append)
        with pytest.raises(UserError, match="is 2: expected a positive multiple of 4"):
            launch(main, parse_args(), check=check_run)
        assert len(waited) == rank


def find_mistake(args: argparse.Namespace) -> None:
    if comm.get_rank() == 1:
        build_config("no such file")
    comm.synchronize()


def wait_in_vain(args: argparse.Namespace) -> None:
    if comm.get_rank() == 0:
        comm.synchronize()
    time.sleep(500)


def test_processes_do_not_wait_for_ever(capfd: pytest.CaptureFixture[str]):
    """One line says who waited, for how long, and which flag to change."""
    args = argument_parser().parse_args(["--num-gpus", "0", "--num-processes", "2", "--collective-timeout", "3"])
    start = time.monotonic()
    assert run_command(lambda: launch(wait_in_vain, args)) == 2
    assert time.monotonic() - start < 500
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("error: process 0 waited 3 s for the others in wait_in_vain (")
    assert "--collective-timeout" in line


def find_mistake_in_one(args: argparse.Namespace) -> None:
    """The other process loses its peer in the middle of work, with loader workers running."""
    loader = iter(DataLoader(range(1000), num_workers=1, prefetch_factor=1))
    next(loader)
    if comm.get_rank() == 1:
        time.sleep(1)
        raise UserError("found a mistake")
    dist.all_reduce(torch.zeros(1))


def test_what_follows_from_the_mistake_of_one_process_is_silent(run_python: RunPython):
    code = (
        "from psf.commands import run_command; from psf.engine import argument_parser, launch\n"
        "from tests.engine.runs.test_launch import find_mistake_in_one\n"
        "if __name__ == '__main__':\n"
        "    args = argument_parser().parse_args(['--num-gpus', '0', '--num-processes', '2'])\n"
        "    raise SystemExit(run_command(lambda: launch(find_mistake_in_one, args)))\n"
    )
    done = run_python("-W", "ignore", "-c", code)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: found a mistake"
    for text in ("Traceback", "Terminating process", "leaked"):
        assert text not in done.stdout + done.stderr


def find_fault(args: argparse.Namespace) -> None:
    torch.nn.Conv2d(3, 4, 1, groups=2)


def test_a_mistake_in_another_process_is_one_line(capfd: pytest.CaptureFixture[str]):
    args = argument_parser().parse_args(["--num-gpus", "0", "--num-processes", "2"])
    assert run_command(lambda: launch(find_mistake, args)) == 2
    errors = capfd.readouterr().err
    assert errors.splitlines()[-1].startswith("error: --config-file 'no such file' does not exist")
    assert "Traceback" not in errors


def test_a_fault_in_another_process_keeps_its_traceback():
    args = argument_parser().parse_args(["--num-gpus", "0", "--num-processes", "2"])
    with pytest.raises(ProcessRaisedException, match="divisible by groups"):
        run_command(lambda: launch(find_fault, args))


def end_by(end: BaseException | int, args: argparse.Namespace) -> None:
    """One process ends alone, while the other one waits for it."""
    if comm.get_rank() == 1:
        if isinstance(end, BaseException):
            raise end
        os.kill(os.getpid(), end)
    comm.synchronize()


@pytest.mark.parametrize(
    ("end", "code", "line"),
    [
        (Stopped(signal.SIGTERM), 128 + signal.SIGTERM, ""),  # of a training, during its setup or evaluation
        (signal.SIGKILL, 2, "error: process 1 was ended by SIGKILL, as the system does when memory runs out"),
    ],
)
def test_one_process_is_ended_by_a_signal(end: BaseException | int, code: int, line: str, capfd):
    args = argument_parser().parse_args(["--num-gpus", "0", "--num-processes", "2"])
    try:
        found = run_command(lambda: launch(partial(end_by, end), args))
    except Stopped as stopped:
        found = stopped.code
    assert found == code
    errors = capfd.readouterr().err
    assert line in errors and "Traceback" not in errors


def test_signals_that_say_why():
    with pytest.raises(Stopped, match="143"):
        launch_module._explain_signal(1, signal.SIGTERM)  # of an evaluation
    with pytest.raises(UserError, match="process 1 was ended by SIGABRT, as NCCL does on GPUs"):
        launch_module._explain_signal(1, signal.SIGABRT)
    launch_module._explain_signal(1, -1)  # an exit code, not a signal


def test_errors_of_gloo_and_nccl():
    watchdog = "[Rank 3] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=5) ran for 3001 milliseconds"
    assert is_of_timeout(RuntimeError(watchdog)) and not is_of_timeout(ValueError(watchdog))
    assert is_of_lost_process(RuntimeError("NCCL error: remote process exited or there was a network error"))
    assert not is_of_timeout(RuntimeError("out of memory")) and not is_of_lost_process(RuntimeError("out of memory"))


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


@pytest.mark.parametrize(
    ("cores", "batch", "expected"),
    [
        (2, 4, (2, 1, 2, None)),
        (1, 4, (1, 1, 1, None)),
        (2, 3, (1, 2, 2, 3)),  # 2 does not divide 3
        (6, 4, (4, 1, 6, 4)),  # not 5 or 6; 6 // 4 threads
        (8, 4, (4, 2, 8, 4)),
        (16, 16, (8, 2, 16, None)),  # no more than 8
        (16, 12, (6, 2, 16, 12)),
    ],
)
def test_training(cores: int, batch: int, expected: tuple[int, int, int, int | None]):
    assert choose_processes(cores, batch, is_training=True) == expected


@pytest.mark.parametrize(("cores", "expected"), [(1, (1, 1)), (3, (3, 1)), (8, (8, 1)), (40, (8, 5))])
def test_evaluation(cores: int, expected: tuple[int, int]):
    assert choose_processes(cores, 1, is_training=False) == (*expected, cores, None)


def test_text():
    assert str(choose_processes(2, 4, is_training=True)) == "2 processes of 1 thread each on 2 cores"
    assert str(choose_processes(2, 1, is_training=True)) == (
        "1 process of 2 threads on 2 cores (SOLVER.IMS_PER_BATCH 1 cannot be shared by more)"
    )


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 6),
        ({"cpu.max": "max 100000\n"}, 6),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),  # half a core
        ({"cpu.max": "900000 100000\n"}, 6),
        ({"cpu.max": "what\n"}, 6),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 6),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "0\n"}, 6),
    ],
)
def test_quota(files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cores(tmp_path) == expected


def test_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    assert usable_cores(tmp_path) == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert usable_cores(tmp_path) == 7
