"""A small dataset on disk for the evaluators."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mini_set import register_mini_set, unregister_mini_set, write_mini_set


@pytest.fixture
def mini(tmp_path: Path) -> Iterator[str]:
    write_mini_set(tmp_path / "mini")
    yield register_mini_set(tmp_path / "mini")
    unregister_mini_set()
