"""`psf predict --model`: a model file and pictures, nothing else; what it says of empty results."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from PIL import Image

from psf.commands.predicting.predict import main
from tests.model_files import noise, write_model_file


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_file(tmp_path_factory.mktemp("model"))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    Image.fromarray(noise()).save(tmp_path / "in" / "photo.png")
    return tmp_path / "in" / "photo.png"


def test_names_come_from_the_file(model_file: Path, photo: Path, out: Path) -> None:
    assert main(["--model", str(model_file), str(photo), "--output", str(out), "--device", "cpu"]) == 0
    found = {one["class"]: one["category_id"] for one in json.loads((out / "photo.json").read_text())["segments_info"]}
    known = {"ball": 3, "box": 5, "traffic light # 2": 30, "sky": 7, "ground": 12, "cloud": 9, "Größe: 3": 40}
    assert found and found.items() <= known.items()


def test_empty_results_say_why(
    model_file: Path, photo: Path, out: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for name in "ab":
        Image.fromarray(noise(seed=3)).save(photo.with_name(f"{name}.png"))
    words = ["--model", str(model_file), str(photo.parent), "--output", str(out), "--confidence-threshold", "1"]
    assert main(words) == 0
    assert f"3 of 3 images written to {out}, 3 without segments" in capsys.readouterr().out
    reasons = [
        record.getMessage() for record in caplog.records if "no segments of 10 candidates" in record.getMessage()
    ]
    assert len(reasons) == 3 and all("below T_CNF 1" in one for one in reasons)


@pytest.mark.parametrize("task", ["instance", "semantic"])
def test_other_tasks(model_file: Path, photo: Path, out: Path, task: str) -> None:
    assert main(["--model", str(model_file), "--input", str(photo), "--output", str(out), "--task", task]) == 0
    assert json.loads((out / "photo.json").read_text())["task"] == task


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["photo.png"], "--model is missing: expected a model file"),
        (["--model", "m.pth"], "found neither: name images, as in psf predict --model FILE photo.jpg"),
        (["--model", "m.pth", "photo.png", "--webcam"], "found both"),
        (["--model", "none.pth", "{photo}", "--output", "{out}"], "none.pth: no such model file"),
    ],
)
def test_mistakes(words: list[str], message: str, photo: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word.format(photo=photo, out=out) for word in words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
