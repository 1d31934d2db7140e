"""`psf quickstart`: the commands that it runs, without the training itself."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from psf.commands.training import quickstart
from psf.data.own_files import write_own_text

Ran = list[tuple[str, ...]]


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ran:
    """The commands that it would run, in an empty folder."""
    commands: Ran = []
    monkeypatch.setattr(quickstart, "run_psf", lambda *words: commands.append(words) or 0)
    monkeypatch.setattr(quickstart, "held_out_images", lambda: ["one.png"] * 7)
    monkeypatch.chdir(tmp_path)
    return commands


def test_options_are_handed_on(ran: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    results = quickstart.OUTPUT / "results.json"
    results.parent.mkdir(parents=True)
    write_own_text(results, json.dumps({"panoptic_seg": {"PQ": 50, "PQ_th": 40, "PQ_st": 60}}))
    assert quickstart.main(["SEED", "1"]) == 0
    train, predict = ran
    assert train[0] == "train" and train[-2:] == ("SEED", "1")
    assert predict[0] == "predict" and predict.count("one.png") == 6
    assert "On 7 held-out scenes: PQ 50.0, PQ_th 40.0, PQ_st 60.0" in capsys.readouterr().out


@pytest.mark.parametrize("is_own", [True, False])
def test_a_second_run_replaces_the_first_and_nothing_else(
    is_own: bool, ran: Ran, capsys: pytest.CaptureFixture[str]
) -> None:
    quickstart.OUTPUT.mkdir(parents=True)
    for name in ("config.yaml", "results.json"):
        write_own_text(quickstart.OUTPUT / name, json.dumps({"panoptic_seg": {"PQ": 1, "PQ_th": 2, "PQ_st": 3}}))
    if not is_own:
        (quickstart.OUTPUT / "config.yaml").write_text("# my notes")
    assert quickstart.main([]) == (0 if is_own else 2)
    assert [words[0] for words in ran] == (["train", "predict"] if is_own else [])
    assert not is_own or "--overwrite" in ran[0]
    assert is_own or "move output/quickstart away" in capsys.readouterr().err


def test_a_failed_training_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quickstart, "run_psf", lambda *words: 2)
    assert quickstart.main([]) == 2


def test_another_output_folder_is_refused(ran: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    assert quickstart.main(["SEED", "1", "OUTPUT_DIR", "elsewhere"]) == 2
    assert "OUTPUT_DIR is always" in capsys.readouterr().err
    assert ran == []


def test_held_out_images_are_files(tmp_path: Path) -> None:
    images = quickstart.held_out_images()
    assert len(images) == 100 and all(Path(image).is_file() for image in images)


FAKE = """
import signal, sys, time
from pathlib import Path
folder = Path("output/quickstart")
if sys.argv[-1] == "saves":
    def stop(number, frame):
        time.sleep(1)  # longer than subprocess.run would wait
        folder.mkdir(parents=True)
        (folder / "last_checkpoint").write_text("model_0000003.pth")
        sys.exit(128 + number)
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, stop)
Path("started").touch()
time.sleep(60)
"""


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
@pytest.mark.parametrize("saves", [True, False])
def test_a_stopped_training_saves_first(
    number: int, name: str, saves: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    (tmp_path / "psf.py").write_text(FAKE)  # what `python -m psf` starts in this folder
    monkeypatch.chdir(tmp_path)

    def send() -> None:
        while not (tmp_path / "started").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    assert quickstart.run_psf("train", "--overwrite", "A", "saves" if saves else "b") == 128 + number
    thread.join()
    line = capfd.readouterr().err.splitlines()[-1]
    saved = "output/quickstart/model_0000003.pth is saved; to continue: psf train --resume A saves"
    assert line == f"stopped by {name}: " + (saved if saves else "nothing is saved; start again with psf quickstart")
