"""Panoptic SegFormer (Li et al., CVPR 2022, arXiv 2109.03814) as a Detectron2 plugin.

`import psf` registers the model, its parts, its data mappers and its datasets with Detectron2's registries and
catalogs; `psf.add_psf_config(cfg)` adds its config keys. If torch or Detectron2 is missing, the first use of a name
raises an ImportError with the command that fixes it; if Detectron2 is too old, `import psf` raises it. The command
`psf` imports modules only when it needs them.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# Public name -> module that defines it; "" stands for the module psf.NAME itself.
_NAMES = {
    "PanopticResult": "psf.prediction",
    "PanopticSegFormer": "psf.meta_arch",
    "Predictor": "psf.prediction",
    "UserError": "psf.errors",
    "add_psf_config": "psf.config",
    "backbone": "",
    "checkpoint": "",
    "data": "",
    "load": "psf.prediction",
    "model_zoo": "",
}
# Names that are imported at their first use: most programs that train or evaluate need none of them.
_LAZY = {"PanopticResult", "Predictor", "load"}
__all__ = [*_NAMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'psf' has no attribute {name!r}")
    try:
        with without_deprecations():
            module = importlib.import_module(_NAMES[name] or f"psf.{name}")
    except (ImportError, OSError) as error:  # OSError: a shared library of torch is missing
        hint = f"`{sys.executable} -m psf doctor` prints the fix"
        raise ImportError(f"psf.{name} cannot be imported ({error}); {hint}") from error
    value = getattr(module, name) if _NAMES[name] else module
    globals()[name] = value
    return value


@contextmanager
def without_deprecations() -> Iterator[None]:
    """Import without the warnings of newer torch versions about Detectron2 and fvcore, which use torch.jit.script."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.* is deprecated", category=Warning)
        yield


def detectron2_problem() -> str:
    """The sentence that this Detectron2 is too old, or "" if it is not; an ImportError if there is none.

    v0.6 of 2021 and later states have the same version number: only features distinguish them.
    """
    with without_deprecations():
        build = importlib.import_module("detectron2.solver.build")
        structures = importlib.import_module("detectron2.structures")
    needed = {
        build.get_default_optimizer_params: "lr_factor_func",
        structures.ImageList.from_tensors: "padding_constraints",
    }
    missing = [feature for function, feature in needed.items() if feature not in inspect.signature(function).parameters]
    if not missing:
        return ""
    return (
        f"Detectron2 is too old: v0.6 of 2021 (which conda-forge has) or older, without {' and '.join(missing)}; psf "
        "needs a state of April 2022 or later, which may also call itself 0.6"
    )


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _is_command() -> bool:
    """Whether this process runs the command `psf`: its --help must be quick, and its doctor must run without torch."""
    program = Path(sys.argv[0] if sys.argv else "")
    if program.name == "-m":  # Python is looking for the module to run
        return ("-m", "psf") in zip(sys.orig_argv, sys.orig_argv[1:])
    # pip's script, and not somebody's own program of this name
    return program.name == "psf" and program.is_file() and "psf.__main__" in program.read_text(errors="ignore")


if not _is_command():
    _problem = ""
    with suppress(ImportError, OSError):  # the first use of a name raises it again
        _problem = detectron2_problem()
        for _name in _NAMES.keys() - _LAZY if not _problem else ():
            __getattr__(_name)
    if _problem:
        raise ImportError(f"{_problem}; `{sys.executable} -m psf doctor` prints the fix")
