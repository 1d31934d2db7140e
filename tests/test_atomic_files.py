"""Files appear whole or not at all, and errors name the file."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from psf.atomic_files import atomic_path, cache_path, remove_stale_drafts, write_text


def test_a_file_appears_whole(tmp_path: Path):
    target = tmp_path / "new" / "weights.pth"
    for text in ("one", "two"):
        write_text(target, text)
        assert target.read_text() == text
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as draft:
        draft.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "two" and list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("durable", [False, True])
def test_only_durable_files_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool):
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    write_text(tmp_path / "a.txt", "text", durable=durable)
    assert len(flushed) == 2 * durable  # the file and its folder


def test_drafts_of_dead_processes_are_removed(tmp_path: Path):
    host, now = socket.gethostname(), time.time()
    ages = {  # name -> age in seconds; process 1 runs
        f".psf-{host}-1-abc": 10,
        ".psf-other-host-77-abc": 10,
        ".psf-of-a-user": 10000,
        f".psf-{host}-{os.getpid()}-abc": 10,
        f".psf-{host}-4194305-abc": 10,  # above the largest number of a process
        ".psf-other-host-78-abc": 4000,
    }
    for name, age in ages.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.pth").write_text("half")
        os.utime(tmp_path / name, (now - age, now - age))
    remove_stale_drafts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(list(ages)[:3])


def test_a_folder_appears_whole_and_the_first_one_stays(tmp_path: Path):
    target = tmp_path / "set"
    for text in ("one", "two"):
        with cache_path(target) as draft:
            draft.mkdir()
            (draft / "a.txt").write_text(text)
    assert (target / "a.txt").read_text() == "one" and list(tmp_path.iterdir()) == [target]
    with pytest.raises(OSError, match="directory"):  # a file does not replace a folder, and is not lost without a word
        write_text(target, "three")


def test_an_error_of_a_full_disk_names_the_file(tmp_path: Path):
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.txt'$"), atomic_path(tmp_path / "a.txt"):
        raise OSError(28, "No space left on device")  # as Python's `write` raises it
    with pytest.raises(OSError, match=r"b\.txt"), atomic_path(tmp_path / "a.txt"):
        raise OSError(28, "No space left on device", "b.txt")
