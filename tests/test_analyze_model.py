"""tools/analyze_model.py, from words to tables."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

Main = Callable[[Sequence[str]], int]
TINY = ["--config-file", "shapes/psf_tiny.yaml", "--input-size", "64", "96"]


@pytest.fixture(scope="module")
def main(repository: Path) -> Main:
    """Of the script; Detectron2's wheel has a module tools.analyze_model, too."""
    spec = importlib.util.spec_from_file_location("psf_analyze_model", repository / "tools" / "analyze_model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_both_tables(main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Options may follow --tasks; nothing is written, and a checkpoint that is named is not looked for."""
    monkeypatch.chdir(tmp_path)
    options = ["MODEL.WEIGHTS", "none.pth", "MODEL.PSF.NUM_THING_QUERIES", "7", "OUTPUT_DIR", "output"]
    assert main([*TINY, "--tasks", "params", "flops", *options]) == 0
    text = capsys.readouterr().out
    assert "with gradient" in text and "G multiply-adds" in text and "64 x 96" in text
    assert text.count("| pixel_encoder") == 2
    assert "Unsupported (cost unknown, not in the total): none" in text
    assert list(tmp_path.iterdir()) == []


def test_one_task(main: Main, capsys: pytest.CaptureFixture[str]):
    assert main(["--tasks", "params", *TINY]) == 0
    text = capsys.readouterr().out
    assert "with gradient" in text and "multiply-adds" not in text


def test_mistakes(main: Main, capsys: pytest.CaptureFixture[str]):
    assert main([*TINY, "MODEL.PSF.NUM_THING_QUERIE", "7"]) == 2
    assert "NUM_THING_QUERIES" in capsys.readouterr().err
    for words in (["--tasks", "speed"], ["--input-size", "0", "96"]):
        with pytest.raises(SystemExit) as stopped:
            main([*TINY, *words])
        assert stopped.value.code == 2
        assert f"error: {words[0]}: expected" in capsys.readouterr().err
