"""psf replaces its own files, and no others."""

from __future__ import annotations

import os
from pathlib import Path

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
