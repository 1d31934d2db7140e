"""When checkpoints are due, which are kept, and when a signal ends a training."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from psf.engine.hooks import CheckpointHook, Stopped, StopSignals, checkpoint_period, stopping
from tests.models import tiny_config


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"MAX_ITER": 1300}, (130, 600.0)),
        ({"MAX_ITER": 90000}, (5000, 600.0)),
        ({"MAX_ITER": 4}, (1, 600.0)),
        ({"MAX_ITER": 1300, "CHECKPOINT_MINUTES": 0.5}, (130, 30.0)),
        ({"MAX_ITER": 1300, "CHECKPOINT_PERIOD": 1000}, (1000, 0.0)),
        ({"MAX_ITER": 1300, "CHECKPOINT_PERIOD": 0}, (0, 0.0)),
    ],
)
def test_period(keys: dict[str, Any], expected: tuple[int, float]):
    assert checkpoint_period(tiny_config(**{f"SOLVER__{key}": value for key, value in keys.items()})) == expected


class FakeTrainer(SimpleNamespace):
    """Writes empty checkpoints."""

    def save_checkpoint(self, name: str) -> Path:
        self.saved.append(self.iter)
        path = self.folder / f"{name}.pth"
        path.touch()
        return path

    def save_final(self) -> Path:
        return self.save_checkpoint("model_final")


def run(folder: Path, num_iterations: int, signals: StopSignals | None = None, **keys: Any) -> FakeTrainer:
    """Run the hook alone; returns the trainer with the iterations after which it saved."""
    options = {"period": 0, "seconds": 0.0, "eval_period": 0, "keep": 0, "keep_every": 0, **keys}
    hook = CheckpointHook(StopSignals() if signals is None else signals, device_type="cpu", **options)
    hook.trainer = FakeTrainer(folder=folder, saved=[], max_iter=num_iterations)
    hook.before_train()
    for hook.trainer.iter in range(num_iterations):
        hook.before_step()
        hook.after_step()
    return hook.trainer


def names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.iterdir())


def test_regular_ones_and_the_last(tmp_path: Path):
    assert run(tmp_path, 7, period=3).saved == [2, 5, 6]
    assert names(tmp_path) == ["model_0000002", "model_0000005", "model_final"]


def test_before_each_evaluation_and_after_some_time(tmp_path: Path):
    assert run(tmp_path, 7, period=7, eval_period=2).saved == [1, 3, 5, 6]
    assert run(tmp_path, 7, eval_period=2).saved == [6]
    assert run(tmp_path, 3, seconds=1e-9).saved == [0, 1, 2]
    assert run(tmp_path, 3).saved == [2]


def test_the_newest_and_each_second_are_kept(tmp_path: Path):
    (tmp_path / "model_of_another_run.pth").touch()
    run(tmp_path, 11, period=1, keep=2, keep_every=4)
    # Each fourth checkpoint, after iterations 3 and 7; the newest two of the others; the last.
    kept = ["model_0000003", "model_0000007", "model_0000008", "model_0000009", "model_final", "model_of_another_run"]
    assert names(tmp_path) == kept


def test_each_second_is_kept_of_those_that_are_written(tmp_path: Path):
    run(tmp_path, 13, period=2, keep=1, keep_every=2)
    # Checkpoints after iterations 1, 3, ..., 11: each second; the newest of the others; the last.
    assert names(tmp_path) == ["model_0000003", "model_0000007", "model_0000009", "model_0000011", "model_final"]


def test_signal_is_noted_in_an_iteration_and_raised_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stopping, "_COPY_SECONDS", 0.0)
    with StopSignals() as signals:
        signals.is_deferred = True
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped) as error:
            run(tmp_path, 5, signals)
        assert error.value.code == 128 + 15 and names(tmp_path) == ["model_0000000"]
        with pytest.raises(Stopped):  # the second one
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(("keys", "last"), [({"period": 9, "eval_period": 2}, 1), ({}, 3)])
def test_signal_during_a_save_ends_the_training_after_it(keys: dict[str, int], last: int, tmp_path: Path, monkeypatch):
    """Before an evaluation, and at the end."""
    plain = FakeTrainer.save_checkpoint

    def save_checkpoint(self: FakeTrainer, name: str) -> Path:
        signal.raise_signal(signal.SIGTERM)
        return plain(self, name)

    monkeypatch.setattr(FakeTrainer, "save_checkpoint", save_checkpoint)
    with StopSignals() as signals, pytest.raises(Stopped) as error:
        run(tmp_path, 4, signals, **keys)
    assert error.value.is_agreed and not signals.is_deferred
    assert names(tmp_path) == [f"model_{last:07d}" if keys else "model_final"]


def test_copies_of_a_signal_count_once():
    with StopSignals() as signals:
        signals.is_deferred = True
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
        assert signals.received == signal.SIGINT


def test_a_state_names_no_other_files_to_delete(tmp_path: Path):
    hook = CheckpointHook(StopSignals(), device_type="cpu", period=1, seconds=0, eval_period=0, keep=1, keep_every=0)
    hook.load_state_dict({"recent": ["notes.txt", "../model_0000001.pth", 5, "model_0000001.pth"]})
    assert hook.state_dict() == {"recent": ["model_0000001.pth"]}
