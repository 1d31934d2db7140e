"""`psf quickstart`: the commands that it runs, without the training itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from psf.commands import quickstart

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
    results.write_text(json.dumps({"panoptic_seg": {"PQ": 50, "PQ_th": 40, "PQ_st": 60}}))
    assert quickstart.main(["SEED", "1"]) == 0
    train, predict = ran
    assert train[0] == "train" and train[-2:] == ("SEED", "1")
    assert predict[0] == "predict" and predict.count("one.png") == 6
    assert "On 7 held-out scenes: PQ 50.0, PQ_th 40.0, PQ_st 60.0" in capsys.readouterr().out


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
