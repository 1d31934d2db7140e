"""Trainings of the mini set in forked processes, which need no second import of torch; and what they record."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.utils.tensorboard  # here, so that no child has to
from detectron2.data import DatasetCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from PIL import Image

from psf.commands import run_command
from psf.engine import argument_parser, check_run, launch, main
from psf.engine.train_step import TrainStep
from psf.evaluation import panels
from tests.mini_set import NAME, PsfTestColorModel, register_mini_set, unregister_mini_set, write_mini_set

__all__ = ["MINI_CONFIG", "PsfTestNoisyModel", "Running", "Runs", "fork", "fork_process", "mini_runs"]

MINI_FOLDER = "PSF_FORKED_MINI"  # variable, for processes that are not forked
# Of a training of the colour model, with everything that a resumed run must restore.
MINI_CONFIG = f"""
VERSION: 2
MODEL: {{META_ARCHITECTURE: PsfTestNoisyModel, WEIGHTS: "", PSF: {{TEST: {{BOUNDARY_PQ: False, INSTANCE_ON: False}}}}}}
DATASETS: {{TRAIN: [{NAME}], TEST: [{NAME}]}}
INPUT: {{MIN_SIZE_TRAIN: [24, 32, 40, 48]}}
SOLVER: {{IMS_PER_BATCH: 4, BASE_LR: 0.01, MAX_ITER: 9, CHECKPOINT_PERIOD: 5, WARMUP_ITERS: 5, STEPS: []}}
TEST: {{EVAL_PERIOD: 4}}
"""


@META_ARCH_REGISTRY.register()
class PsfTestNoisyModel(PsfTestColorModel):
    """The colour model with a random number of the main process in its losses, as dropout has."""

    def losses(self, batch: list[dict]) -> dict[str, torch.Tensor]:
        return {name: value * torch.rand(()) for name, value in super().losses(batch).items()}


class Running(NamedTuple):
    """A training that runs: the ids of its processes, by rank."""

    processes: list[int]

    def kill(self, ranks: list[int] | None = None) -> None:
        """Send SIGKILL to these ranks, or to all."""
        for rank in range(len(self.processes)) if ranks is None else ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.processes[rank], signal.SIGKILL)

    def wait(self, seconds: float = 300.0) -> list[int | None]:
        """The exit code of each process (negative: its signal); None for those that must be killed after `seconds`."""
        codes: list[int | None] = [None] * len(self.processes)
        end = time.monotonic() + seconds
        for rank, process in enumerate(self.processes):
            while codes[rank] is None and time.monotonic() < end:
                found, status = os.waitpid(process, os.WNOHANG)
                if found:
                    codes[rank] = os.waitstatus_to_exitcode(status)
                else:
                    time.sleep(0.005)
        for process, code in zip(self.processes, codes, strict=True):
            if code is None:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
        return codes


class Runs:
    """Starts trainings of the registered mini set below `folder`, and records their losses and outputs.

    Args:
        config: of the trainings, in YAML.
    """

    def __init__(self, folder: Path, config: str = MINI_CONFIG) -> None:
        self.folder = folder
        self.config = folder / "noisy.yaml"
        self.config.write_text(config)

    def start(
        self,
        *words: str,
        output: str = "output",
        num_processes: int = 1,
        at: int | None = None,
        number: int = signal.SIGKILL,
        before: Callable[[], object] = lambda: None,
    ) -> Running:
        """Start a training, as `psf train` does.

        Args:
            words: flags (--FLAG=VALUE in one word) and KEY VALUE pairs.
            output: folder below `folder`.
            at: iteration in which every process sends itself the signal `number`.
            before: called in every process before the training.
        """
        flags = [word for word in words if word.startswith("--")]
        opts = [*(word for word in words if not word.startswith("--")), "OUTPUT_DIR", str(self.folder / output)]
        own = ["--config-file", str(self.config), "--num-gpus", "0", "--num-processes", "1"]
        args = argument_parser().parse_args([*own, *flags, *opts])
        meeting = self.folder / f"meeting_{time.monotonic_ns()}"

        def run(rank: int) -> None:
            torch.set_num_threads(1)
            panels.draw_panel = lambda *arguments: np.zeros((1, 1, 3), np.uint8)  # takes half of the time
            self._record(self.folder / f"{output}_losses_{rank}.txt", at, number)
            before()
            if num_processes == 1:
                sys.exit(run_command(lambda: launch(train, args, check=check_run)))
            dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=num_processes)
            comm.create_local_process_group(num_processes)
            sys.exit(run_command(lambda: train(args)))

        files = [self.folder / f"{output}_{rank}.txt" for rank in range(num_processes)]
        return Running([fork(lambda rank=rank: run(rank), file) for rank, file in enumerate(files)])

    def train(self, *words: str, **how: object) -> int | None:
        """As `start`; returns the exit code of the first process."""
        return self.start(*words, **how).wait()[0]

    @staticmethod
    def _record(path: Path, at: int | None, number: int) -> None:
        plain = TrainStep._note_metrics

        def note_metrics(step: TrainStep, losses: dict, data_time: float) -> None:
            with path.open("a") as file:
                file.write(f"{step.iter} {sum(losses.values()).item().hex()}\n")
            plain(step, losses, data_time)
            if step.iter == at:
                os.kill(os.getpid(), number)

        TrainStep._note_metrics = note_metrics

    def losses(self, output: str, rank: int = 0) -> list[tuple[int, str]]:
        """(iteration, loss) in the order in which they were computed."""
        file = self.folder / f"{output}_losses_{rank}.txt"
        lines = file.read_text().split() if file.is_file() else []
        return [(int(iteration), loss) for iteration, loss in zip(lines[::2], lines[1::2], strict=True)]

    def metric_iterations(self, output: str) -> list[int]:
        """The iterations of the lines of metrics.json."""
        lines = (self.folder / output / "metrics.json").read_text().splitlines()
        return [json.loads(line)["iteration"] for line in lines]

    def log(self, output: str = "output", rank: int = 0) -> str:
        """What the process has printed last."""
        return (self.folder / f"{output}_{rank}.txt").read_text(errors="replace")


def train(args: argparse.Namespace) -> None:
    """`psf.engine.main`, also in a process that has to register the set first."""
    if NAME not in DatasetCatalog:
        register_mini_set(Path(os.environ[MINI_FOLDER]))
    main(args)


def fork_process() -> int:
    """os.fork. The copy never frees garbage of this process: a video decoder would wait for threads that it lacks."""
    child = os.fork()
    if not child:
        gc.freeze()
    return child


def fork(action: Callable[[], object], printed: Path) -> int:
    """Run an action in a copy of this process, which prints to a file; returns its id."""
    if child := fork_process():
        return child
    code = 1
    try:
        with printed.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout = os.fdopen(1, "w", buffering=1)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        action()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


@contextlib.contextmanager
def mini_runs(folder: Path, config: str = MINI_CONFIG) -> Iterator[Runs]:
    """`Runs` of a mini set that is written to `folder` and registered in this context."""
    Image.init()  # all formats, here, so that no child has to
    write_mini_set(folder / "mini")
    register_mini_set(folder / "mini")
    os.environ[MINI_FOLDER] = str(folder / "mini")
    try:
        yield Runs(folder, config)
    finally:
        unregister_mini_set()
        del os.environ[MINI_FOLDER]
