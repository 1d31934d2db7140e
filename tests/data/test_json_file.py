"""The one reader of JSON files, and that every room asks it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from psf.data.json_file import read_json


@pytest.mark.parametrize("kind", [str, Path])
def test_content(tmp_path: Path, kind: type):
    (tmp_path / "a.json").write_bytes('{"id": "ä"}'.encode())
    assert read_json(kind(tmp_path / "a.json")) == {"id": "ä"}


@pytest.mark.parametrize("content", [b"[1, 2", b"", b'{"id": "\xe4"}'])
def test_damaged_files_are_named(tmp_path: Path, content: bytes):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json: not a valid JSON file \(.+\)$"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("name", ["none.json", ""])
def test_missing_files_and_folders_are_named(tmp_path: Path, name: str):
    path = tmp_path / name
    reason = "Is a directory" if path.is_dir() else "No such file or directory"
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: cannot be read as a JSON file \\({reason}\\)$"):
        read_json(path)


def test_there_is_no_second_one(repository: Path):
    """Beside it, only files of psf's own making are parsed: results of a measurement, derived instances."""
    own = {"psf/data/json_file.py", "psf/evaluation/instances.py", "psf/robustness/record.py", "tools/quickstart.py"}
    folders = ("psf", "tools", "datasets", "demo")
    found = {
        file.relative_to(repository).as_posix()
        for folder in folders
        for file in (repository / folder).rglob("*.py")
        if re.search(r"json\.loads?\(", file.read_text(encoding="utf-8"))
    }
    assert found == own
