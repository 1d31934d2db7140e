"""What the README shows, run."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from psf.engine import argument_parser
from tests.conftest import RunPython


@pytest.mark.slow
def test_the_five_lines_run(repository: Path, run_python: RunPython, tmp_path: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (repository / "README.md").read_text(), re.S)
    Image.fromarray(np.full((64, 96, 3), 90, dtype=np.uint8)).save(tmp_path / "photo.jpg")
    done = run_python("-W", "ignore", "-c", block + "print(tuple(panoptic_seg.shape))", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "(64, 96)"


def test_the_files_that_it_names_are_there(repository: Path) -> None:
    text = (repository / "README.md").read_text()
    named = set(re.findall(r"(?:configs|docs|demo|psf|tools)/[\w./-]+\.(?:yaml|md|py)", text))
    assert len(named) > 5
    assert [name for name in sorted(named) if not (repository / name).is_file()] == []


def test_train_net_takes_the_arguments_that_it_names(repository: Path) -> None:
    commands = re.findall(r"^python train_net.py (.*)$", (repository / "README.md").read_text(), re.M)
    assert commands
    for command in commands:
        argument_parser().parse_args(command.split())
