"""`psf quickstart`: the commands that it runs, without the training itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from psf.commands import quickstart
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
