"""The wheel: what is in it, what building it needs, and that psf works from it."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest

from psf.model_zoo import get_config_file

SOURCES = ("psf", "configs", "setup.py", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture
def wheel(tmp_path: Path, repository: Path, run_python) -> Path:
    """The wheel, built in a copy of the sources, by a Python in which torch and detectron2 cannot be imported."""
    copy = tmp_path / "sources"
    copy.mkdir()
    for name in SOURCES:
        source = repository / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    command = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    broken = {name: "imported by the build" for name in ("torch", "torchvision", "detectron2")}
    process = run_python(*command, "--wheel-dir", str(tmp_path / "wheels"), str(copy), broken=broken)
    assert process.returncode == 0, process.stdout + process.stderr
    (wheel,) = (tmp_path / "wheels").iterdir()
    return wheel


def test_wheel(wheel: Path, repository: Path, tmp_path: Path, run_python, monkeypatch: pytest.MonkeyPatch) -> None:
    import psf

    assert wheel.name == f"panoptic_segformer-{psf.__version__}-py3-none-any.whl"  # nothing is compiled
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    configs = {
        f"psf/{path.relative_to(repository).as_posix()}"
        for path in (repository / "configs").rglob("*.*")
        if path.suffix in (".yaml", ".py")
    }
    modules = {path.relative_to(repository).as_posix() for path in (repository / "psf").rglob("*.py")}
    page = {path.relative_to(repository).as_posix() for path in (repository / "psf/tools/serving/page").iterdir()}
    assert configs and len(page) == 5 and configs | modules | page | {"psf/py.typed"} <= names
    tops = {name.split("/")[0] for name in names}
    assert tops == {"psf", f"panoptic_segformer-{psf.__version__}.dist-info"}

    # -I: neither this folder nor PYTHONPATH; -S: nor an installed psf.
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'installed')!r}); "
        "from psf.model_zoo import get_config_file; print(get_config_file('Base-PSF.yaml'))"
    )
    process = run_python("-I", "-S", "-c", code)
    assert Path(process.stdout.strip()) == tmp_path / "installed/psf/configs/Base-PSF.yaml", process.stderr

    for words in (["--help"], ["validate", "--help"]):
        process = run_python("-m", "psf", *words, path=[tmp_path / "installed"], cwd=tmp_path)
        assert process.returncode == 0 and "validate" in process.stdout, process.stderr


def test_requirements_leave_torch_alone(repository: Path) -> None:
    """Installing psf must not replace a torch or a Detectron2 that is there."""
    tomllib = pytest.importorskip("tomllib", reason="tomllib comes with Python 3.11")
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert not [name for name in project["dependencies"] if name.startswith(("torch", "detectron2", "panopticapi"))]


def test_get_config_file(repository: Path) -> None:
    assert Path(get_config_file("Base-PSF.yaml")) == repository / "configs" / "Base-PSF.yaml"


def test_get_config_file_unknown() -> None:
    with pytest.raises(ValueError, match=r"no config 'Base-PSF\.yml'.* Base-PSF\.yaml"):
        get_config_file("Base-PSF.yml")


def test_get_config_file_stays_inside() -> None:
    with pytest.raises(ValueError, match="no config"):
        get_config_file("../configs/Base-PSF.yaml")
