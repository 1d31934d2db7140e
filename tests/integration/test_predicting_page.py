"""docs/predicting.md: its commands and its Python run with a model file and two pictures."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from psf.commands import load_command
from tests.integration.test_readme import shown_commands
from tests.mini_set import write_mini_set
from tests.model_files import EASY, noise, write_model_file


@pytest.fixture
def page(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The page's text; the current folder has what it names."""
    counts = {"NUM_THING_CLASSES": -1, "NUM_STUFF_CLASSES": -1}
    write_model_file(tmp_path / "output" / "mine", {**EASY, **counts})
    (tmp_path / "photos").mkdir()
    for path in ("photo.jpg", "photos/a.jpg"):
        Image.fromarray(noise()).save(tmp_path / path)
    write_mini_set(tmp_path / "mini")
    monkeypatch.chdir(tmp_path)
    return (repository / "docs" / "predicting.md").read_text()


def test_commands(page: str, tmp_path: Path) -> None:
    (block,) = re.findall(r"```\n(psf .*?)```", page, re.S)
    commands = [(name, shlex.split(words)) for name, words in shown_commands(f"```\n{block}```")]
    assert [name for name, _ in commands] == ["predict", "predict", "predict", "info"]
    for name, words in commands:
        assert load_command(name).main(words) == 0, (name, words)
    assert (tmp_path / "out" / "a.jpg").is_file() and (tmp_path / "out_things" / "photo.json").is_file()


def test_python(page: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "docs/predicting.md", "exec"), {})
    assert (tmp_path / "drawn.png").is_file() and "candidates" in capsys.readouterr().out


@pytest.mark.usefixtures("one_core")
def test_evaluation(page: str, tmp_path: Path) -> None:
    (words,) = re.findall(r"`psf evaluate ([^`]*)`", page)
    mini = tmp_path / "mini"
    words = words.replace("mine_val", "psf_test_page").replace(
        "JSON,PNGS,IMAGES", f"{mini}/panoptic.json,{mini}/panoptic,{mini}/images"
    )
    assert load_command("evaluate").main(["--num-gpus", "0", *shlex.split(words), "DATALOADER.NUM_WORKERS", "0"]) == 0
    assert list((tmp_path / "output").rglob("results.json"))
