"""Workers that fail are reported in one line."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator

import pytest

from psf.data.loaders import build_test_loader, explain_dead_workers
from psf.errors import UserError
from tests.models import tiny_config


class Stuck:
    """An image that cannot be sent to the main process, as without shared memory."""

    def __reduce__(self) -> str:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")


def misbehave(dataset_dict: dict) -> object:
    how = dataset_dict["file_name"]
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "slow":
        time.sleep(60)
    return Stuck()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("killed", "is killed by signal: Killed|exited unexpectedly"),
        ("slow", "timed out after 1 seconds"),
        ("not sent", "exited unexpectedly"),
    ],
)
def test_workers_that_send_nothing_are_reported(how: str, message: str, capfd: pytest.CaptureFixture[str]):
    """In one line that says what to change, and within seconds; the reason of a worker is printed, too."""
    cfg = tiny_config(DATALOADER__NUM_WORKERS=1, DATALOADER__TIMEOUT=1 if how == "slow" else 100)
    loader = build_test_loader(cfg, [{"file_name": how}], misbehave)
    start = time.monotonic()
    expected = rf"^DataLoader .*({message}).*/dev/shm.*DATALOADER\.NUM_WORKERS"
    with pytest.raises(UserError, match=expected), explain_dead_workers():
        list(loader)
    assert time.monotonic() - start < 50
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL  # torch's would print a traceback later
    assert ("cannot send its batch: unable to allocate" in capfd.readouterr().err) == (how == "not sent")


@pytest.fixture
def without_signals(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch does not hear of the end of a worker, as while it forks the others."""
    monkeypatch.setattr("torch.utils.data._utils.signal_handling._SIGCHLD_handler_set", True)
    monkeypatch.setattr("psf.data.loaders.workers._SECONDS_BETWEEN_LOOKS", 0.5)
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGCHLD, before)


def test_a_dead_worker_is_noticed_without_a_signal(without_signals: None):
    cfg = tiny_config(DATALOADER__NUM_WORKERS=2, DATALOADER__TIMEOUT=600)
    start = time.monotonic()
    with pytest.raises(UserError, match="exited unexpectedly"), explain_dead_workers():
        list(build_test_loader(cfg, 2 * [{"file_name": "killed"}], misbehave))
    assert time.monotonic() - start < 50


def test_a_worker_that_ends_while_a_tensor_is_fetched_from_it():
    reader, writer = multiprocessing.Pipe(duplex=False)
    writer.close()
    with reader, pytest.raises(UserError, match=r"^DataLoader worker ended \(EOFError\): "), explain_dead_workers():
        reader.recv()


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), FileNotFoundError("a.png"), EOFError()])
def test_other_errors_are_not_explained_away(error: Exception):
    with pytest.raises(type(error)), explain_dead_workers():
        raise error
