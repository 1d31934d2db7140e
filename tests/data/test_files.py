"""Files: JSON is read in one place, files appear whole or not at all, and errors name the file."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from detectron2.utils.file_io import PathManager
from PIL import Image

from psf.checkpoint import pretrained
from psf.data.files import (
    atomic_path,
    cache_path,
    check_replaceable,
    free_name,
    has_png_sign,
    is_own,
    own_path,
    read_json,
    recorded,
    save_signed_png,
    write_own_text,
    write_text,
)
from psf.errors import UserError


def test_a_file_appears_whole(tmp_path: Path):
    target = tmp_path / "new" / "weights.pth"
    for text in ("one", "two"):
        write_text(target, text)
        assert target.read_text() == text
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as draft:
        draft.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "two" and list(target.parent.iterdir()) == [target]


def test_weights_name_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PSF_CACHE", str(tmp_path / "file" / "psf"))
    monkeypatch.setattr(pretrained, "_convert", lambda weights: {})
    with pytest.raises(ValueError, match=r"cannot write .*tf_efficientnet_lite0\.pth .*PSF_CACHE"):
        PathManager.get_local_path("psf://tf_efficientnet_lite0")


def test_a_folder_appears_whole_and_the_first_one_stays(tmp_path: Path):
    target = tmp_path / "set"
    for text in ("one", "two"):
        with cache_path(target) as draft:
            draft.mkdir()
            (draft / "a.txt").write_text(text)
    assert (target / "a.txt").read_text() == "one" and list(tmp_path.iterdir()) == [target]
    with pytest.raises(OSError, match="directory"):  # a file does not replace a folder, and is not lost without a word
        write_text(target, "three")


@pytest.mark.parametrize("kind", [str, Path])
def test_json_content(tmp_path: Path, kind: type):
    (tmp_path / "a.json").write_bytes('{"id": "ä"}'.encode())
    assert read_json(kind(tmp_path / "a.json")) == {"id": "ä"}


@pytest.mark.parametrize("content", [b"[1, 2", b"", b'{"id": "\xe4"}'])
def test_damaged_json_files_are_named(tmp_path: Path, content: bytes):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json: not a valid JSON file \(.+\)$"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("name", ["none.json", ""])
def test_missing_json_files_and_folders_are_named(tmp_path: Path, name: str):
    path = tmp_path / name
    reason = "Is a directory" if path.is_dir() else "No such file or directory"
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: cannot be read as a JSON file \\({reason}\\)$"):
        read_json(path)


def test_there_is_no_second_json_reader(repository: Path):
    """Beside it, only files of psf's own making are parsed: results of a measurement, derived instances."""
    own = {
        "psf/data/files.py",
        "psf/evaluation/instances.py",
        "psf/tools/robustness/record.py",
        "psf/commands/quickstart.py",
    }
    folders = ("psf", "datasets", "demo")
    found = {
        file.relative_to(repository).as_posix()
        for folder in folders
        for file in (repository / folder).rglob("*.py")
        if re.search(r"json\.loads?\(", file.read_text(encoding="utf-8"))
    }
    assert found == own


def test_psf_replaces_its_own_files_and_no_others(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    own, theirs = tmp_path / "own.txt", tmp_path / "theirs.txt"
    for text in ("one", "two"):
        write_own_text(own, text)
    assert own.read_text() == "two" and is_own(own)
    theirs.write_text("two")  # the content alone does not make it psf's
    with pytest.raises(UserError, match=r"theirs\.txt exists, and psf has not written it.*another folder"):
        write_own_text(theirs, "three")
    assert theirs.read_text() == "two" and free_name(theirs) == tmp_path / "theirs_2.txt"
    assert "writing" in caplog.text
    own.write_text("two, with notes")
    assert not is_own(own) and free_name(own) == tmp_path / "own_2.txt"
    check_replaceable([own, theirs], overwrite=True, way_out="")
    assert is_own(own) and is_own(theirs)


@pytest.mark.parametrize("kind", ["folder", "link", "broken link", "pipe"])
def test_only_regular_files_are_own(tmp_path: Path, kind: str):
    target = tmp_path / "a.txt"
    write_own_text(target, "text")
    target.rename(tmp_path / "b.txt")
    if kind == "folder":
        target.mkdir()
    elif kind == "pipe":
        os.mkfifo(target)
    else:
        target.symlink_to(tmp_path / ("b.txt" if kind == "link" else "none"))
    with pytest.raises(UserError, match=r"a\.txt exists"):
        write_own_text(target, "new")
    assert (tmp_path / "b.txt").read_text() == "text"


def test_a_file_of_a_killed_run_is_recognised(tmp_path: Path):
    """Between its record and its move to the final place: the old file is still psf's, and so is the new one."""
    target = tmp_path / "a.txt"
    write_own_text(target, "old")
    with pytest.raises(KeyboardInterrupt), own_path(target) as draft:
        draft.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old" and is_own(target)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_own_text(target, "new")
    assert is_own(target)
    target.write_text("new")
    assert is_own(target)


def test_files_of_a_library_are_recorded_also_after_an_error(tmp_path: Path):
    target = tmp_path / "film.mp4"
    with pytest.raises(RuntimeError), recorded(target):
        target.write_bytes(b"frames")
        raise RuntimeError
    assert is_own(target)


def test_signed_pngs_are_recognised_in_any_folder(tmp_path: Path):
    own, theirs = tmp_path / "own.png", tmp_path / "theirs.png"
    save_signed_png(Image.new("RGB", (2, 3)), own)
    Image.new("RGB", (2, 3)).save(theirs)
    (tmp_path / "text.png").write_text("no picture")
    assert [has_png_sign(path) for path in (own, theirs, tmp_path / "text.png")] == [True, False, False]
    assert free_name(own, has_png_sign) == own and free_name(theirs, has_png_sign) == tmp_path / "theirs_2.png"
    assert {path.name for path in tmp_path.iterdir()} == {"own.png", "theirs.png", "text.png"}  # no manifest
