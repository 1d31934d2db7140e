"""Fixtures that tests of several packages share."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# Python runs a `sitecustomize` before anything else: here it hides modules, as if they were not installed.
_HIDE_MODULES = """
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec
PathFinder.find_spec = staticmethod(lambda name, *args: None if name in {hidden!r} else find_spec(name, *args))
"""

RunPython = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return REPOSITORY


def load_script(path: Path) -> ModuleType:
    """A script as a module, by its path: Detectron2's wheel brings a package called tools."""
    spec = importlib.util.spec_from_file_location(f"psf_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _loggers() -> Iterator[None]:
    """Detectron2's set-up of loggers, which caplog cannot see through, ends with the test."""
    yield
    for name in ("detectron2", "fvcore", "psf"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    if (setup := sys.modules.get("detectron2.utils.logger")) is not None:
        setup.setup_logger.cache_clear()


@pytest.fixture
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that choose the number of processes choose one: they run in the process of the test."""
    module = importlib.import_module("psf.engine.runs.launch")  # psf.engine has the function under this name
    monkeypatch.setattr(module, "usable_cores", lambda: 1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and reference numbers that lies beside some checkouts."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder ../shared (real images and reference numbers), which is not beside this checkout")
    return folder


@pytest.fixture
def run_python(tmp_path: Path) -> RunPython:
    """Run a fresh Python in the repository: run_python("-c", code, hidden=["timm"], broken={"av": "why"}).

    `hidden` modules are as if not installed, `broken` ones raise RuntimeError with that text at import, `path` are
    folders in front of the import path. Returns the finished process, with stdout and stderr as text.
    """

    def run(
        *arguments: str,
        hidden: Iterable[str] = (),
        broken: dict[str, str] | None = None,
        path: Iterable[Path] = (),
        cwd: Path = REPOSITORY,
    ) -> subprocess.CompletedProcess[str]:
        stand_ins = Path(tempfile.mkdtemp(dir=tmp_path))
        if hidden:
            (stand_ins / "sitecustomize.py").write_text(_HIDE_MODULES.format(hidden=set(hidden)))
        for name, reason in (broken or {}).items():
            (stand_ins / f"{name}.py").write_text(f"raise RuntimeError({reason!r})\n")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [stand_ins, *path]))}
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)

    return run
