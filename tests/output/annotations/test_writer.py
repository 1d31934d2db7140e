"""Files that grow: they are whole after the end, after Ctrl-C and after an error; memory stays small."""

from __future__ import annotations

import errno
import json
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest

from psf.output.annotations import StreamedFile


def streamed(target: Path) -> StreamedFile:
    return StreamedFile(target, head="[", separator=",\n", tail=lambda number: f',"{number} parts"]')


def test_the_end(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    with streamed(target) as file:
        file.append("1")
        file.append("2")
        assert not target.exists()
    assert json.loads(target.read_text()) == [1, 2, "2 parts"]
    with streamed(target) as file:
        file.append("3")
    assert json.loads(target.read_text()) == [3, "1 parts"]
    assert [path.name for path in tmp_path.iterdir() if path.name != ".psf-files"] == ["a.json"]


def test_ctrl_c_within_a_part(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    with pytest.raises(KeyboardInterrupt), streamed(target) as file:
        file.append("1")
        file._file.write(b",\n[2, ")  # as if the interrupt came while a part is written
        raise KeyboardInterrupt
    assert json.loads(target.read_text()) == [1, "1 parts"]


def test_an_error(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    with pytest.raises(RuntimeError), streamed(target) as file:
        file.append("1")
        raise RuntimeError("no memory on the GPU")
    assert json.loads(target.read_text()) == [1, "1 parts"]


@pytest.mark.parametrize("error", [RuntimeError(), KeyboardInterrupt(), None])
def test_without_a_part_the_earlier_file_stays(tmp_path: Path, error: BaseException | None) -> None:
    target = tmp_path / "a.json"
    with streamed(target) as file:
        file.append("1")
    with suppress(RuntimeError, KeyboardInterrupt), streamed(target):
        if error is not None:
            raise error
    assert json.loads(target.read_text()) == [1, "1 parts"]
    assert [path.name for path in tmp_path.iterdir() if path.name != ".psf-files"] == ["a.json"]


def test_a_full_disk_keeps_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.json"
    with streamed(target) as file:
        file.append("1")

    def fail(number: int) -> str:
        raise OSError(errno.ENOSPC, "no space left on device")

    with pytest.raises(OSError, match="no space left"), streamed(target) as file:
        file.append("2")
        monkeypatch.setattr(file, "_tail", fail)
    assert json.loads(target.read_text()) == [1, "1 parts"]
    assert [path.name for path in tmp_path.iterdir() if path.name != ".psf-files"] == ["a.json"]


def test_parts_are_not_kept_in_memory(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        with streamed(tmp_path / "a.json") as file:
            for _ in range(200):
                file.append(json.dumps("x" * 100_000))
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()
    assert (tmp_path / "a.json").stat().st_size > 20_000_000
