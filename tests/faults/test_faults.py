"""A few tries of each fault, and faults that have to be noticed."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from psf.errors import UserError
from tests.faults import fuzz as fuzz_module
from tests.faults.__main__ import fault_trainings
from tests.faults.fuzz import READERS, fuzz
from tests.faults.kills import MAX_ITER, Reference, compare
from tests.faults.mutations import CANARY
from tests.faults.reader import Reader
from tests.faults.report import Scenario, table
from tests.forked_training import Runs

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc"), reason="faults are made in Linux' terms")


def test_trainings(tmp_path: Path):
    rows = fault_trainings(1, 7, tmp_path / "runs", side_by_side=False)
    assert len(rows) == 10 and all(row.tries for row in rows)
    assert not [reason for row in rows for reason in row.reasons]


def test_readers(tmp_path: Path):
    rows = fuzz(100, 7, tmp_path, num_workers=1)
    assert len(rows) == len(READERS) and sum(row.tries for row in rows) >= 100
    assert not [reason for row in rows for reason in row.reasons]


class Touch:
    """Unpickled by creating the canary file."""

    def __reduce__(self) -> Any:
        return os.mkdir, (CANARY,)


def unpickle() -> None:
    pickle.loads(pickle.dumps(Touch()))


def write_elsewhere() -> None:
    Path("../elsewhere").write_text("x")


def crash() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def compute_for_ever() -> None:
    while True:
        pass


def divide() -> float:
    return 1 / 0


def refuse() -> None:
    raise UserError("input: expected something else")


@pytest.mark.parametrize(
    ("read", "lost"),
    [
        (unpickle, "executed: pickle.find_class \"('posix', 'mkdir')\""),
        (lambda: os.system("true"), "executed: os.system"),
        (write_elsewhere, "outside of the output folder: open '../elsewhere'"),
        (crash, "the process ended with -9"),
        (compute_for_ever, "hangs"),
        (divide, "traceback: ZeroDivisionError"),
        (refuse, None),
        (lambda: Path("out").mkdir(), None),
    ],
)
def test_what_readers_must_not_do(
    read: Callable[[], Any], lost: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    bad = Reader("bad", 1000, ("input",), lambda: [b"x"], lambda sound, number, seed, judge: judge(sound[0]), read)
    monkeypatch.setattr(fuzz_module, "READERS", (bad,))
    monkeypatch.setattr(fuzz_module, "HANG", 0.5)
    [row] = fuzz(1, 1, tmp_path / "runs", num_workers=1)
    assert row.tries == 1 and row.lost == (lost is not None)
    assert lost is None or lost in row.reasons[0]


def test_lost_losses_are_noticed(tmp_path: Path):
    losses = {iteration: "0x1p0" for iteration in range(MAX_ITER)}
    reference, runs = Reference([losses], 1.0, (), 1), Runs(tmp_path)
    lines = [f"{iteration} 0x1p0\n" for iteration in losses]
    for written, lost in (
        (lines[:-1], "losses of process 0 are not those"),
        ([*lines[:3], "2 0x1p1\n", *lines[2:]], "losses of process 0 differ at iteration 2"),
        (lines, f"the checkpoint of iteration {MAX_ITER - 1} is lost"),
    ):
        (tmp_path / "run_losses_0.txt").write_text("".join(written))
        found = compare(runs, "run", reference)
        assert found is not None and lost in found


def test_table():
    row = Scenario("kills")
    row.count(None)
    row.count("all")
    assert table([row]).splitlines()[-1].split() == ["|", "kills", "|", "2", "|", "1", "|", "1", "|"]
