"""What a reader and its inputs are to the fuzzer, and ways to make the inputs."""

from __future__ import annotations

import contextlib
import io
import json
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import hypothesis
from hypothesis import strategies as st

from psf.errors import UserError, escape_controls
from tests.faults.mutations import damage, edited_json

__all__ = ["Judge", "Reader", "by_bytes", "by_json", "by_strategy", "read_all", "run_command"]

Judge = Callable[[bytes], None]


class Reader(NamedTuple):
    """A reader and its inputs.

    share: of 1000 inputs.
    files: in the present folder; an input is written to all of them.
    prepare: writes the files that the inputs need beside them to the present folder; returns the sound inputs.
    generate: function of the sound inputs, a number, a seed and a function that is called with each input.
    read: reads `files`, and may write below out/.
    """

    name: str
    share: int
    files: tuple[str, ...]
    prepare: Callable[[], list[bytes]]
    generate: Callable[[list[bytes], int, int, Judge], None]
    read: Callable[[], Any]


def by_bytes(sound: list[bytes], number: int, seed: int, judge: Judge) -> None:
    """Sound inputs with damaged bytes, or parts of two of them joined."""
    chance = random.Random(seed)
    for _ in range(number):
        content = chance.choice(sound)
        if chance.randrange(10) == 0:
            other = chance.choice(sound)
            content = content[: chance.randrange(len(content) + 1)] + other[chance.randrange(len(other) + 1) :]
        judge(damage(content, chance))


def by_strategy(strategy: Callable[[list[bytes]], st.SearchStrategy[bytes]]) -> Callable[..., None]:
    """Inputs that hypothesis draws; one in eight has damaged bytes besides."""

    def generate(sound: list[bytes], number: int, seed: int, judge: Judge) -> None:
        chance = random.Random(seed)

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=number,
            database=None,
            deadline=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(strategy(sound))
        def run(content: bytes) -> None:
            judge(damage(content, chance) if chance.randrange(8) == 0 else content)

        run()

    return generate


def by_json(sound: list[bytes]) -> st.SearchStrategy[bytes]:
    return edited_json([json.loads(one) for one in sound])


def run_command(main: Callable[[Sequence[str]], int], *words: str) -> None:
    """Run a command as a user does; check that it ends with results, or with one line and exit code 2."""
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        code = main(words)
    lines = [line for line in errors.getvalue().split("\n") if line.startswith("error: ")]
    if code not in (0, 1, 2) or len(lines) != (code == 2) or "Traceback" in errors.getvalue():
        raise AssertionError(f"exit code {code}, {len(lines)} lines: {errors.getvalue()[-300:]!a}")
    if lines and escape_controls(lines[0]) != lines[0]:
        raise AssertionError(f"unprintable line {lines[0][:300]!a}")


def read_all(*reads: Callable[[], Any]) -> None:
    """Call several readers of the same input, each also after a UserError of one before; raises the first of these."""
    errors: list[UserError] = []
    for read in reads:
        try:
            read()
        except UserError as error:
            errors.append(error)
    if errors:
        raise errors[0]
