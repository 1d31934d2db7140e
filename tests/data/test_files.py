"""Files: JSON is read in one place, and errors name the file."""

from __future__ import annotations

import gc
import hashlib
import os
import re
from pathlib import Path

import pytest
from detectron2.utils.file_io import PathManager

from psf.checkpoint import pretrained
from psf.data.files import (
    is_hidden,
    make_folder,
    read_json,
    sha256_of,
)
from psf.errors import UserError


def test_sha256_of_a_file_and_of_its_beginning(tmp_path: Path):
    path, content = tmp_path / "a.npy", bytes(range(256)) * 5000  # more than one part
    path.write_bytes(content)
    assert sha256_of(path) == hashlib.sha256(content).hexdigest()
    for size in (0, 10, 2**20, 2**20 + 1, len(content)):
        assert sha256_of(str(path), size) == hashlib.sha256(content[:size]).hexdigest(), size


def test_weights_name_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PSF_CACHE", str(tmp_path / "file" / "psf"))
    monkeypatch.setattr(pretrained, "_convert", lambda weights: {})
    with pytest.raises(ValueError, match=r"cannot write .*tf_efficientnet_lite0\.pth .*PSF_CACHE"):
        PathManager.get_local_path("psf://tf_efficientnet_lite0")


@pytest.mark.parametrize("kind", [str, Path])
def test_json_content(tmp_path: Path, kind: type):
    (tmp_path / "a.json").write_bytes('{"id": "ä"}'.encode())
    assert read_json(kind(tmp_path / "a.json")) == {"id": "ä"}


@pytest.mark.parametrize("content", [b"[1, 2", b"", b'{"id": "\xe4"}'])
def test_damaged_json_files_are_named(tmp_path: Path, content: bytes):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json: not a valid JSON file \(.+\)$"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none.json", r"cannot be read as a JSON file \(No such file or directory\)"),
        ("", "a folder, expected a regular file"),
    ],
)
def test_missing_json_files_and_folders_are_named(tmp_path: Path, name: str, reason: str):
    path = tmp_path / name
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: {reason}$"):
        read_json(path)


def test_there_is_no_second_json_reader(repository: Path):
    """Beside it, only files of psf's own making are parsed: results of a measurement, metrics."""
    own = {
        "psf/data/files.py",
        "psf/engine/results.py",
        "psf/ops/measured_choices.py",
        "psf/tools/robustness/record.py",
        "psf/commands/training/quickstart.py",
    }
    folders = ("psf", "datasets", "demo")
    found = {
        file.relative_to(repository).as_posix()
        for folder in folders
        for file in (repository / folder).rglob("*.py")
        if re.search(r"json\.loads?\(", file.read_text(encoding="utf-8"))
    }
    assert found == own


def test_json_with_a_byte_order_mark(tmp_path: Path):
    (tmp_path / "a.json").write_text('{"a": "ü"}', encoding="utf-8-sig")
    assert read_json(tmp_path / "a.json") == {"a": "ü"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (100_000 * b"[" + 100_000 * b"]", "nested too deeply"),
        ('{"a": 1}'.encode("utf-16"), "expected UTF-8"),
        (b'{"a": ' + 5000 * b"9" + b"}", "not a valid JSON file"),  # more digits than Python converts
    ],
)
def test_json_that_cannot_be_read_is_named(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.json: .*{message}"):
        read_json(tmp_path / "a.json")


def test_pipes_are_no_json(tmp_path: Path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(ValueError, match=r"a\.json: a pipe, .*expected a regular file"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("name", "expected"), [("a.png", False), ("._a.png", True), (".a/b.png", True), ("x/._b.png", True), ("x/b", False)]
)
def test_hidden_files(name: str, expected: bool):
    assert is_hidden(Path("/.home/set", name), Path("/.home/set")) is expected


def test_a_file_in_the_place_of_a_folder(tmp_path: Path):
    (tmp_path / "a").touch()
    for path in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(ValueError, match=rf"--output {path}: expected a folder, found a file"):
            make_folder(path, "--output")


@pytest.mark.parametrize("text", ['{"images": [1], "images": [2]}', '[{"a": {"images": 1, "b": 2, "images": 1}}]'])
def test_an_object_with_a_key_twice_is_refused(tmp_path: Path, text: str):
    """The last value would count, and the first be lost."""
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json: not a valid JSON file \(an object has the key 'images' twice; keep"):
        read_json(tmp_path / "a.json")
    assert gc.isenabled()
    (tmp_path / "a.json").write_text('[{"images": 1}, {"images": 2}]')
    assert read_json(tmp_path / "a.json") == [{"images": 1}, {"images": 2}]
