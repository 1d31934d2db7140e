"""`psf analyze`, from words to tables."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from psf.commands.evaluating.analyze import main

TINY = ["--config-file", "shapes/psf_tiny.yaml", "--input-size", "64", "96"]


def test_both_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Options may follow --tasks; nothing is written, and a checkpoint that is named is not looked for."""
    monkeypatch.chdir(tmp_path)
    options = ["MODEL.WEIGHTS", "none.pth", "MODEL.PSF.NUM_THING_QUERIES", "7", "OUTPUT_DIR", "output"]
    assert main([*TINY, "--tasks", "params", "flops", *options]) == 0
    text = capsys.readouterr().out
    assert "with gradient" in text and "G multiply-adds" in text and "64 x 96" in text
    assert text.count("| pixel_encoder") == 2
    assert "Unsupported (cost unknown, not in the total): none" in text
    assert list(tmp_path.iterdir()) == []


def test_one_task(capsys: pytest.CaptureFixture[str]):
    assert main(["--tasks", "params", *TINY]) == 0
    text = capsys.readouterr().out
    assert "with gradient" in text and "multiply-adds" not in text


def test_mistakes(capsys: pytest.CaptureFixture[str]):
    assert main([*TINY, "MODEL.PSF.NUM_THING_QUERIE", "7"]) == 2
    assert "NUM_THING_QUERIES" in capsys.readouterr().err
    for words in (["--tasks", "speed"], ["--input-size", "0", "96"]):
        with pytest.raises(SystemExit) as stopped:
            main([*TINY, *words])
        assert stopped.value.code == 2
        assert re.search(rf"error: (argument )?{words[0]}: expected", capsys.readouterr().err)
