"""Bars are for terminals; a log file gets a line now and then."""

from __future__ import annotations

import io

import pytest
from tqdm.std import tqdm

from psf.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("seconds", "num_lines"), [(1.0, 0), (10.0, 4)])
def test_a_log_file_gets_lines(seconds: float, num_lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten images of 1 s are done before the first line; 10 s each: after 30, 60 and 90 s, and at the end."""
    clock, file = [1000.0], io.StringIO()
    progress = Progress(range(10), unit="image", file=file)
    monkeypatch.setattr(progress, "_time", lambda: clock[0])
    progress.start_t = progress.last_print_t = clock[0]
    for _ in progress:
        clock[0] += seconds
    lines = [line for line in file.getvalue().splitlines() if line]
    assert len(lines) == num_lines, lines
    assert "\r" not in file.getvalue() and (not lines or "10/10" in lines[-1])


def test_a_message_of_the_log_repeats_no_line() -> None:
    file = io.StringIO()
    for _ in Progress(range(2), file=file):
        Progress.write("a message", file=file)
    assert file.getvalue() == "a message\n" * 2


def test_a_terminal_gets_a_bar() -> None:
    file = Terminal()
    assert list(Progress(range(3), file=file)) == [0, 1, 2]
    assert "\r" in file.getvalue() and "3/3" in file.getvalue()
    assert issubclass(Progress, tqdm)
