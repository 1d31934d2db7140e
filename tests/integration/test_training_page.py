"""docs/training.md: its training loop runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


@pytest.mark.usefixtures("one_core")
def test_the_training_loop(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (repository / "docs" / "training.md").read_text(), re.S)
    exec(compile(block, "docs/training.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1"] and "nan" not in lines[1] and "loss" in lines[1]
