"""Training that is killed or stopped, and resumed: the losses are those of an unbroken run, to the last bit."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm

from psf.engine import Trainer
from psf.engine.runs import run
from tests.forked_training import PsfTestNoisyModel, Runs, mini_runs
from tests.mini_set import PsfTestColorModel

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked, to save their imports")

LAST = 8  # the last iteration
KILLED, RESUMED = 6, 5  # iterations; the checkpoint has iterations 0 to 4: an odd number, for two workers
# Killed after an evaluation, and resumed from the checkpoint before it.
EVALUATED = ("SEED", "1", "SOLVER.CHECKPOINT_PERIOD", "100")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with mini_runs(tmp_path_factory.mktemp("runs")) as runs:
        yield runs


@pytest.mark.parametrize(
    ("num_workers", "num_processes", "opts"),
    [
        (0, 1, ("SEED", "1")),
        (1, 1, ("SEED", "1")),
        (2, 1, ("SEED", "1", "DATALOADER.ASPECT_RATIO_GROUPING", "False")),
        (1, 2, ("SEED", "1")),
        (0, 1, EVALUATED),
        (1, 1, EVALUATED),
        (0, 2, ("SEED", "1", "SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16")),
    ],
)
def test_losses_after_a_kill_are_those_of_an_unbroken_run(
    runs: Runs, num_workers: int, num_processes: int, opts: tuple[str, ...]
):
    killed, resumed = (5, 4) if opts == EVALUATED else (KILLED, RESUMED)
    opts = (*opts, "DATALOADER.NUM_WORKERS", str(num_workers))
    name = f"{num_workers}_{num_processes}_{killed}"
    assert runs.train(*opts, output=f"{name}_whole", num_processes=num_processes) == 0, runs.log(f"{name}_whole")
    code = runs.train(*opts, output=f"{name}_broken", num_processes=num_processes, at=killed)
    assert code == -signal.SIGKILL, runs.log(f"{name}_broken")
    with (runs.folder / f"{name}_broken" / "metrics.json").open("a") as file:  # as if the period were shorter
        file.write(f'{{"iteration": {killed}, "lr": 1}}\n{{"iter')
    assert runs.train("--resume", *opts, output=f"{name}_broken", num_processes=num_processes) == 0, runs.log(
        f"{name}_broken"
    )
    for rank in range(num_processes):
        whole, broken = runs.losses(f"{name}_whole", rank), runs.losses(f"{name}_broken", rank)
        assert [iteration for iteration, _ in whole] == list(range(LAST + 1))
        assert [iteration for iteration, _ in broken] == [*range(killed + 1), *range(resumed, LAST + 1)]
        assert broken == [*whole[: killed + 1], *whole[resumed:]]
        assert len({loss for _, loss in whole}) == LAST + 1
    assert runs.metric_iterations(f"{name}_broken") == runs.metric_iterations(f"{name}_whole")


class TestStop:
    @pytest.mark.parametrize(
        ("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGUSR1, "SIGUSR1"), (signal.SIGINT, "Ctrl-C")]
    )
    def test_saves_and_says_how_to_go_on(self, runs: Runs, number: int, name: str):
        opts = ("SEED", "1", "DATALOADER.NUM_WORKERS", "1", "SOLVER.CHECKPOINT_PERIOD", "0", "TEST.EVAL_PERIOD", "0")
        assert runs.train(*opts, output=name, at=0, number=number) == 128 + number, runs.log(name)
        *_, line = runs.log(name).splitlines()
        saved = runs.folder / name / "model_0000000.pth"
        assert f"Stopped by {name}: {saved} is saved; continue with the same command and --resume" in line
        assert saved.is_file() and "Traceback" not in runs.log(name)
        assert runs.train("--resume", *opts, output=name) == 0, runs.log(name)
        assert [iteration for iteration, _ in runs.losses(name)] == list(range(LAST + 1))

    def test_all_processes_stop_after_the_same_iteration(self, runs: Runs):
        opts = ("SEED", "1", "DATALOADER.NUM_WORKERS", "0")
        code = runs.train(*opts, output="two", num_processes=2, at=3, number=signal.SIGTERM)
        assert code == 128 + signal.SIGTERM, runs.log("two")
        assert runs.losses("two", 0)[-1][0] == runs.losses("two", 1)[-1][0] == 3
        assert "model_0000003.pth is saved" in runs.log("two").splitlines()[-1]

    def test_all_processes_stop_after_the_save_in_which_it_comes(self, runs: Runs):
        """One process has it, while both save before an evaluation."""

        def stop_in_save() -> None:
            plain = Trainer.save_checkpoint

            def save_checkpoint(self: Trainer, *args: object) -> Path:
                if comm.get_rank() == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                return plain(self, *args)

            Trainer.save_checkpoint = save_checkpoint

        how = {"output": "saving", "num_processes": 2, "before": stop_in_save}
        codes = runs.start("DATALOADER.NUM_WORKERS", "0", **how).wait(60.0)
        assert codes == [128 + signal.SIGTERM] * 2, runs.log("saving")
        assert runs.losses("saving")[-1][0] == 3
        assert "model_0000003.pth is saved; continue" in runs.log("saving").splitlines()[-1]

    def test_before_the_first_iteration_there_is_nothing_to_save(self, runs: Runs):
        def stop_in_setup() -> None:
            logging.getLogger().handlers.clear()  # pytest's
            run.setup = lambda args: os.kill(os.getpid(), signal.SIGTERM)

        assert runs.train(output="early", before=stop_in_setup) == 128 + signal.SIGTERM, runs.log("early")
        [line] = runs.log("early").splitlines()
        assert "Stopped by SIGTERM: nothing to save: start the same command again" in line

    def test_evaluation_does_not_hold_it_up(self, runs: Runs):
        def stop_in_evaluation() -> None:
            PsfTestColorModel.segment = lambda self, image: os.kill(os.getpid(), signal.SIGTERM)

        code = runs.train("DATALOADER.NUM_WORKERS", "0", output="evaluated", before=stop_in_evaluation)
        assert code == 128 + signal.SIGTERM, runs.log("evaluated")
        assert "model_0000003.pth is saved; continue" in runs.log("evaluated").splitlines()[-1]


def test_processes_skip_a_bad_step_together(runs: Runs):
    def spoil_the_second_process() -> None:
        plain = PsfTestNoisyModel.losses
        calls = []

        def losses(self: PsfTestNoisyModel, batch: list[dict]) -> dict[str, torch.Tensor]:
            calls.append(batch)
            factor = float("nan") if comm.get_rank() == 1 and len(calls) in (3, 6) else 1.0
            return {name: value * factor for name, value in plain(self, batch).items()}

        PsfTestNoisyModel.losses = losses

    opts = ("DATALOADER.NUM_WORKERS", "0", "SEED", "1", "TEST.EVAL_PERIOD", "0")
    code = runs.train(*opts, output="nan", num_processes=2, before=spoil_the_second_process)
    assert code == 0, runs.log("nan")
    for rank in range(2):
        assert [iteration for iteration, _ in runs.losses("nan", rank)] == [0, 1, 3, 4, 6, 7, 8]
    skipped = [line for line in runs.log("nan").splitlines() if "SKIPPED iteration" in line]
    assert len(skipped) == 2 and all(".png, " in line and "loss_point nan" in line for line in skipped)
    stored = sorted(path.name for path in (runs.folder / "nan" / "skipped_steps").iterdir())
    assert [name for name in stored if "process_1" in name] == [
        "iteration_0000002_process_1.pth",
        "iteration_0000005_process_1.pth",
    ]
