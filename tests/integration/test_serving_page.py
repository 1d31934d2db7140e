"""docs/serving.md: its commands and its Python run with a model file and a picture."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import REPOSITORY
from tests.integration.test_readme import shown_commands
from tests.model_files import noise, write_model_file

pytest.importorskip("psf.tools.serving", reason="needs the packages of the extra serve")

TEXT = (REPOSITORY / "docs" / "serving.md").read_text()
COMMANDS = [words for name, words in shown_commands(TEXT) if name == "serve" and words.strip()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the page names."""
    write_model_file(tmp_path / "output" / "mine")
    Image.fromarray(noise()).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextmanager
def served(words: str) -> Iterator[str]:
    """The address of a server at any free port."""
    command = [sys.executable, "-m", "psf", "serve", *shlex.split(words), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[2]
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.stdout.read().startswith("stopped, after ")
    assert process.returncode == 0


def test_first_command_and_its_clients(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served(COMMANDS[0]) as address:
        page = TEXT.replace("http://127.0.0.1:8000", address)
        (block,) = re.findall(r"```python\n(.*?)```", page, re.S)
        exec(compile(block, "docs/serving.md", "exec"), {})
        assert "ground" in capsys.readouterr().out
        with Image.open("panoptic.png") as panoptic, Image.open("drawn.jpg") as drawn:
            assert panoptic.size == (96, 64) and drawn.width >= 96  # with a legend
        if shutil.which("curl") is None:
            pytest.skip("needs curl for the commands of the page")
        for name in ("panoptic.png", "drawn.jpg"):
            Path(name).unlink()
        lines = re.findall(r"^curl .*$", page, re.M)
        assert len(lines) == 3
        outputs = [
            subprocess.run(shlex.split(line), capture_output=True, check=True, timeout=120).stdout for line in lines
        ]
        assert json.loads(outputs[0])["segments"]
        with Image.open("panoptic.png") as panoptic, Image.open("drawn.jpg") as drawn:
            assert panoptic.format == "PNG" and drawn.format == "JPEG"


@pytest.mark.usefixtures("folder")
def test_second_command() -> None:
    assert len(COMMANDS) == 3 and COMMANDS[2].strip() == "--model R50"  # of the text; published names have their tests
    with served(COMMANDS[1]) as address, urllib.request.urlopen(f"{address}/v1/model", timeout=60) as answer:
        assert json.load(answer)["limits"]["max_pixels"] == 12_000_000


def test_limits_are_those_of_the_command() -> None:
    from psf.commands.predicting.serve import build_parser

    args = build_parser().parse_args(["--model", "m.pth"])
    rows = dict(re.findall(r"^\| `--([\w-]+)` \| (\d+) \|", TEXT, re.M))
    assert len(rows) == 8
    for name, number in rows.items():
        assert getattr(args, name.replace("-", "_")) == int(number), name


def test_metrics_exist() -> None:
    from psf.tools.serving.metrics import Metrics

    known = Metrics().text().decode()
    named = set(re.findall(r"`((?:psf|process)_\w+)", TEXT))
    assert len(named) > 7 and [name for name in named if name.removesuffix("_total") not in known] == []
