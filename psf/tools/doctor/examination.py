"""Check this machine and its Python environment."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
import re
import shutil
import sys
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import psf
from psf.tools.doctor.parts import PACKAGE_FOLDER, PIP_INSTALL, PYTHON, Part, all_parts

__all__ = [
    "Finding",
    "examine",
    "main",
]


WIDTH = max(len(subject) for subject in ("deformable attention", *(part.name for part in all_parts())))


class Finding(NamedTuple):
    """One line of the report."""

    subject: str
    state: str  # version and remarks, or the problem
    fix: str = ""  # the command that fixes it; "": nothing to fix
    is_fatal: bool = False  # True: psf cannot run


def _try_import(name: str) -> ModuleType | Exception:
    """The module, or the exception of its import."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except Exception as error:  # a broken library may raise any exception
        return error


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _find_part(part: Part, failed: set[str]) -> Finding:
    """State of a part; the parts in `failed` do not work."""
    is_fatal = not part.purpose
    if importlib.util.find_spec(part.name) is None:
        return Finding(part.name, f"missing: no {part.purpose}" if part.purpose else "missing", part.fix, is_fatal)
    if broken := failed.intersection(part.needs):
        return Finding(part.name, f"installed; cannot be tested without {', '.join(sorted(broken))}")
    if part.name == "detectron2" and (problem := _detectron2_problem()):
        fix = f"remove this Detectron2 (pip uninstall detectron2, or conda remove detectron2), then: {part.fix}"
        return Finding(part.name, problem, fix, is_fatal)
    module = _try_import(part.imports)
    if isinstance(module, ModuleType):
        state = _describe(part.name)
        if _major_and_minor(state) < part.least:
            least = ".".join(map(str, part.least))
            return Finding(part.name, f"{state}; too old: psf needs {least} or later", part.fix_broken, is_fatal)
        return Finding(part.name, state)
    return Finding(part.name, f"cannot be imported: {_in_one_line(module)}", part.fix_broken, is_fatal)


def _detectron2_problem() -> str:
    """The sentence that Detectron2 is too old; "" if it is not, or cannot be imported."""
    try:
        return psf.detectron2_problem()
    except Exception:  # the import that follows reports it
        return ""


def _major_and_minor(version: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _describe(name: str) -> str:
    """Version and build of an imported part."""
    module = sys.modules[name]
    version = getattr(module, "__version__", None) or _distribution_version(name)
    if name == "torch":
        return f"{version}, {_cuda_build(module)}"
    if name == "detectron2":
        has_compiled = isinstance(_try_import("detectron2._C"), ModuleType)
        code = "with compiled _C" if has_compiled else "Python only, no compiled _C (psf does not need it)"
        return f"{version}, {code}, {Path(str(module.__file__)).parent}"
    return str(version)


def _distribution_version(module: str) -> str:
    names = importlib.metadata.packages_distributions().get(module)
    return importlib.metadata.version(names[0]) if names else "of unknown version"


def _cuda_build(torch: Any) -> str:
    return f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"


def _find_gpus(torch: Any) -> list[Finding]:
    """One finding for each GPU, tested with one addition; or one finding with the reason why there is no GPU."""
    if torch.version.cuda is None:
        return [Finding("GPU", "not used: torch is a build without CUDA")]
    try:
        torch.cuda.init()
    except RuntimeError as error:
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")
        fix = "update the NVIDIA driver, or install a torch that is built for the driver's CUDA version"
        return [Finding("GPU", f"none: {reason}", fix if shutil.which("nvidia-smi") else "")]
    findings = []
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        state = f"{gpu.name}, capability {gpu.major}.{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB"
        try:
            torch.ones(1, device=f"cuda:{index}").add(1).item()
        except RuntimeError as error:
            reason = str(error).strip().split("\n")[0]
            fix = f"install a torch that is built for capability {gpu.major}.{gpu.minor}, or set MODEL.DEVICE cpu"
            findings.append(Finding(f"GPU {index}", f"{state}; fails: {reason}", fix))
        else:
            findings.append(Finding(f"GPU {index}", state))
    return findings


def _find_triton(has_gpu: bool) -> Finding:
    if importlib.util.find_spec("triton") is None:
        return Finding("triton", "missing: no Triton kernels", f"{PIP_INSTALL} triton" if has_gpu else "")
    triton = _try_import("triton")
    if isinstance(triton, Exception):
        fix = f"{PIP_INSTALL} --force-reinstall --no-deps triton"
        return Finding("triton", f"cannot be imported: {_in_one_line(triton)}", fix)
    if not has_gpu:
        return Finding("triton", f"{triton.__version__}, not used: no GPU")
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        return Finding("triton", f"{triton.__version__}, no C compiler for its launcher", "apt-get install gcc")
    return Finding("triton", f"{triton.__version__}, ready")


def _find_psf(can_run: bool) -> list[Finding]:
    """psf itself, and the deformable attention that it will use."""
    package = sys.modules["psf"]
    state = f"{getattr(package, '__version__', 'of unknown version')}, {PACKAGE_FOLDER}"
    if not can_run:
        return [
            Finding("psf", state),
            Finding("deformable attention", "none: required packages are missing, see below"),
        ]
    for module in ("psf.meta_arch", "psf.engine"):
        error = _try_import(module)
        if isinstance(error, Exception):
            fix = f"{PYTHON} -c 'import {module}'  # shows where it fails"
            return [Finding("psf", f"{state}; cannot be imported: {_in_one_line(error)}", fix, True)]
    return [
        Finding("psf", state),
        Finding("deformable attention", importlib.import_module("psf.ops").describe_implementation()),
    ]


def examine() -> Iterator[Finding]:
    """Check this machine and its Python: one finding per subject, in the order of the report, as soon as it is found.

    The imports take seconds, and only they show that a library works.
    """
    yield Finding("Python", f"{platform.python_version()}, {sys.executable}")
    yield Finding("system", platform.platform())
    can_run = True
    failed: set[str] = set()
    for part in all_parts():
        finding = _find_part(part, failed)
        yield finding
        can_run = can_run and not finding.is_fatal
        if finding.fix:
            failed.add(part.name)
    gpus = (
        [Finding("GPU", "unknown without a working torch")] if "torch" in failed else _find_gpus(sys.modules["torch"])
    )
    has_gpu = any(gpu.subject != "GPU" for gpu in gpus)
    yield _find_triton(has_gpu)
    yield from gpus
    yield from _find_psf(can_run)


def _lines(finding: Finding) -> str:
    """One finding in lines of up to 120 characters."""
    row = f"{'!' if finding.is_fatal else ' '} {finding.subject:<{WIDTH}}  {finding.state}"
    indent = " " * (WIDTH + 4)
    return textwrap.fill(row, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _conclusion(findings: Iterable[Finding]) -> str:
    """Whether psf can run, and the commands that fix what was found."""
    findings = list(findings)
    fatal = _fixes(finding for finding in findings if finding.is_fatal)
    optional = _fixes(finding for finding in findings if finding.fix and not finding.is_fatal)
    lines = ["psf cannot run. Fix this first, in this order:" if fatal else "psf can run.", *fatal]
    if optional:
        lines += ["", "Optional:", *optional]
    return "\n".join(lines)


def _fixes(findings: Iterable[Finding]) -> list[str]:
    """One line for each different fix, with all subjects that need it."""
    subjects: dict[str, list[str]] = {}
    for finding in findings:
        subjects.setdefault(finding.fix, []).append(finding.subject)
    return [f"  {', '.join(fixed)}: {fix}" for fix, fixed in subjects.items()]


def main() -> int:
    """Write the report to standard output, line by line as it is found; 0: psf can run, 1: it cannot."""
    findings = []
    for finding in examine():
        findings.append(finding)
        sys.stdout.write(f"{_lines(finding)}\n")
        sys.stdout.flush()
    sys.stdout.write(f"\n{_conclusion(findings)}\n")
    return int(any(finding.is_fatal for finding in findings))
