"""psf replaces its own files, and no others."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from psf.data.own_files import (
    check_replaceable,
    free_name,
    has_png_sign,
    is_own,
    own_path,
    recorded,
    save_signed_png,
    write_own_text,
)
from psf.errors import UserError


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


def test_a_file_to_overwrite_is_the_user_s_until_it_is_replaced(tmp_path: Path):
    target, film = tmp_path / "a.txt", tmp_path / "film.mp4"
    for path in (target, film):
        path.write_text("mine")
    check_replaceable([target, film], overwrite=True, way_out="")
    with pytest.raises(KeyboardInterrupt), own_path(target, overwrite=True):
        raise KeyboardInterrupt
    with pytest.raises(RuntimeError), recorded(film):
        raise RuntimeError  # before the library opens the file
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_own_text(target, "new", overwrite=True)
    assert not is_own(target) and not is_own(film)
    write_own_text(target, "new", overwrite=True)
    assert is_own(target) and target.read_text() == "new"
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="--overwrite does not replace"):
        write_own_text(tmp_path / "folder", "new", overwrite=True)


def test_an_earlier_content_that_the_user_restored_is_the_user_s(tmp_path: Path):
    target = tmp_path / "a.txt"
    for text in ("one", "two"):
        write_own_text(target, text)
    target.write_text("one")
    assert not is_own(target)


def test_the_manifest_is_read_once_and_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """N files take N steps; lines of other processes, half a line, and a manifest that is replaced are noticed."""
    target, manifest = tmp_path / "a.txt", tmp_path / ".psf-files"
    manifest.write_bytes(b"".join(b"%064x  file%d.png\n" % (number, number) for number in range(1000)))
    write_own_text(target, "text")
    line = manifest.read_bytes().splitlines(keepends=True)[-1]
    num_read, read = 0, io.BufferedReader.read

    class Counting(io.BufferedReader):
        def read(self, size: int | None = -1, /) -> bytes:
            nonlocal num_read
            content = read(self, size)
            num_read += len(content)
            return content

    def opened(path: Path, mode: str, *_: int, **options: Any) -> Any:
        return Counting(io.FileIO(path)) if mode == "rb" and path == manifest else open(path, mode, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opened)
        for number in range(20):
            write_own_text(tmp_path / f"new{number}.txt", "text")
    assert num_read <= 21 * (len(line) + 5)

    (tmp_path / "b.txt").write_text("text")
    with manifest.open("ab") as file:  # another process
        file.write(line.replace(b"a.txt", b"b.txt") + b"half a li")
    assert is_own(tmp_path / "b.txt")
    write_own_text(tmp_path / "c.txt", "text")
    assert is_own(tmp_path / "c.txt") and is_own(target)
    manifest.write_bytes(line)
    assert is_own(target) and not is_own(tmp_path / "c.txt")
    manifest.unlink()
    assert not is_own(target)


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


@pytest.mark.parametrize("kind", ["folder", "link", "broken link", "pipe"])
def test_a_manifest_that_is_no_regular_file_is_refused(tmp_path: Path, kind: str):
    manifest, theirs = tmp_path / "folder" / ".psf-files", tmp_path / "theirs.txt"
    manifest.parent.mkdir()
    if kind == "folder":
        manifest.mkdir()
    elif kind == "pipe":
        os.mkfifo(manifest)
    else:
        manifest.symlink_to(theirs)
    if kind == "link":
        theirs.write_text("mine")
    for _ in range(2):
        with pytest.raises(UserError, match=r"\.psf-files: .*expected a regular file"):
            write_own_text(manifest.with_name("a.txt"), "new")
    assert theirs.exists() == (kind == "link") and (kind != "link" or theirs.read_text() == "mine")
