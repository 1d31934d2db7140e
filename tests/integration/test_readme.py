"""README, docs/ and other pages: the Python runs, commands are understood, and files, targets and config keys exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg
from PIL import Image

from psf import add_psf_config
from psf.commands import COMMANDS, load_command
from psf.model_zoo import get_config_file
from tests.conftest import REPOSITORY, RunPython
from tests.model_files import EASY, noise, write_model_file

PAGES = [
    *(
        REPOSITORY / name
        for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "datasets/README.md")
    ),
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
# In capitals, and no config keys: variables of the environment, and what users put in their place.
NO_KEYS = {"PSF_CACHE", "PSF_MSDA", "DETECTRON2_DATASETS", "PSF_BENCHMARK_RESULTS", "PSF_GPU_SECONDS"}
NO_KEYS |= {"PSF_GPU_DEVICE", "PSF_WHEELS", "PSF_WEIGHTS_URL", "COARSE_GRID", "CHANGELOG.md"}
NO_KEYS |= {"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def test_the_python_runs(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (repository / "README.md").read_text(), re.S)
    write_model_file(tmp_path / "output" / "quickstart", EASY)
    Image.fromarray(noise()).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "drawn.png").is_file() and capsys.readouterr().out.startswith("[('")


@pytest.mark.slow
def test_the_quick_start_runs(repository: Path, run_python: RunPython, tmp_path: Path) -> None:
    """From nothing to segmented photographs: the commands of the first block, with a training of two iterations.

    The published weights and the server have tests of their own.
    """
    block = re.findall(r"## Quick start\n\n(```\n.*?```)", (repository / "README.md").read_text(), re.S)[0]
    commands = [(name, shlex.split(words)) for name, words in shown_commands(block)]
    commands = [(name, words) for name, words in commands if name != "serve" and "R50" not in words]
    assert [name for name, _ in commands] == ["quickstart", "predict", "info"]
    (tmp_path / "photos").mkdir()
    Image.fromarray(noise()).save(tmp_path / "photos" / "a.jpg")
    short = ["SOLVER.MAX_ITER", "2", "MODEL.PSF.POST_PROCESSOR.TUNE_IMAGES", "0"]
    for name, words in commands:
        words += short * (name == "quickstart")
        done = run_python("-m", "psf", name, *words, path=[repository], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "a.jpg").is_file() and "5 things" in done.stdout


def test_first_screen(repository: Path) -> None:
    lines = (repository / "README.md").read_text().splitlines()
    assert len(lines) <= 120
    (picture,) = [re.search(r"\((.*)\)", line)[1] for line in lines if line.startswith("![")]
    assert (repository / picture).stat().st_size < 200_000


def shown_commands(text: str) -> Iterator[tuple[str, str]]:
    """Name and arguments of each `psf NAME ...`, in code blocks and in sentences."""
    text = text.replace("\\\n", " ")
    for block in re.findall(r"```\w*\n(.*?)```", text, re.S):
        yield from re.findall(r"^ *psf ([a-z][a-z-]*)([^#\n]*)", block, re.M)
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    yield from re.findall(r"^ {4,}psf ([a-z][a-z-]*)([^#\n]*)", text, re.M)
    yield from re.findall(r"`psf ([a-z][a-z-]*)([^`]*)`", text)


def test_commands_are_found() -> None:
    text = "`psf doctor`\n```\npsf train --config-file a \\\n  KEY 1  # why\n```\nand `psf --help`\n"
    found = [(name, shlex.split(words)) for name, words in shown_commands(text)]
    assert found == [("train", ["--config-file", "a", "KEY", "1"]), ("doctor", [])]


@pages
def test_commands_are_understood(page: Path) -> None:
    for name, words in shown_commands(page.read_text()):
        assert name in COMMANDS, f"psf {name}"
        if not words.strip():
            continue  # a mention
        args = load_command(name).build_parser().parse_args(shlex.split(words))
        config = getattr(args, "config_file", "") or ""
        if config.endswith(".yaml") and not config.startswith("output/"):
            get_config_file(config)  # raises for an unknown one
        assert len(getattr(args, "opts", [])) % 2 == 0, words


@pages
def test_files_and_targets_exist(page: Path) -> None:
    text = page.read_text()
    folders = "benchmarks|configs|datasets|demo|docs|fidelity|psf|setup|tests"
    named = set(re.findall(rf"(?<![\w/.-])(?:{folders})/[\w./-]+\.(?:json|md|py|sh|toml|txt|yaml)\b", text))
    named |= set(re.findall(r"python ([\w/]+\.py)\b", text))
    assert [name for name in sorted(named) if not (REPOSITORY / name).is_file()] == []
    (targets,) = re.findall(r"^\.PHONY: (.*)$", (REPOSITORY / "Makefile").read_text(), re.M)
    assert set(re.findall(r"(?:^ *|`)make ([a-z-]+)", text, re.M)) <= set(targets.split())


@pages
def test_config_keys_exist(page: Path) -> None:
    """A key in backticks is one of the config, or the end of one: `TEST.BATCH_SIZE` of MODEL.PSF.TEST.BATCH_SIZE."""
    cfg = get_cfg()
    add_psf_config(cfg)
    known = {f".{key}" for key in dotted_keys(cfg)}
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    named = set(re.findall(r"`([A-Z][A-Z0-9]*(?:[._][A-Z][A-Z0-9_]*)+)(?=[` ])", text)) - NO_KEYS
    named = {name for name in named if not name.endswith("_REGISTRY")}
    assert [key for key in sorted(named) if not any(one.endswith(f".{key}") for one in known)] == []


def dotted_keys(node: CfgNode, prefix: str = "") -> Iterator[str]:
    """Paths of all keys, also of those that hold others."""
    for key, value in node.items():
        yield prefix + key
        if isinstance(value, CfgNode):
            yield from dotted_keys(value, f"{prefix}{key}.")
