"""Which room of psf may look into which: the plan of docs/architecture.md, held against every import statement."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "psf"

# The paper: rooms that do not see each other, with all of psf and of other packages that they may import.
PAPER = {
    "predictions": {"torch"},
    "ops": {"torch", "triton"},
    "precision": {"torch"},
    "modeling": {"torch", "detectron2", "psf.ops", "psf.precision", "psf.predictions", "psf.registry"},
    "losses": {"torch", "torchvision", "scipy", "fvcore", "psf.precision", "psf.predictions"},
    "inference": {"torch", "numpy", "psf.precision", "psf.predictions"},
}
# All that modeling takes from Detectron2.
CONSTRUCTION = {
    "detectron2.config.CfgNode",
    "detectron2.config.configurable",
    "detectron2.layers.ShapeSpec",
    "detectron2.utils.registry.Registry",
}
# Detectron2's shell, then what drives the model: each may import those before it, and the paper.
SHELL = (
    "registry",
    *PAPER,
    "config",
    "classes",
    "targets",
    "joint_queries",
    "backbone",
    "post_processing",
    "recipe",
    "recompute",
    "tiled_inference",
    "model_parts",
    "meta_arch",
    "test_time_augmentation",
)
ORDER = (
    *SHELL,
    "model_zoo",
    "output",
    "data",
    "checkpoint",
    "evaluation",
    "video",
    "analysis",
    "engine",
    "robustness",
    "golden",
    "doctor",
    "__init__",
)


def imports_of(file: Path) -> Iterator[str]:
    """Dotted names of everything that a file imports, at any depth: "torch", "psf.ops.ms_deform_attn"."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: psf imports by full names, not relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(name: str) -> str:
    """Of psf the package and its room, of others the package alone."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "psf" else parts[0]


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=[file.relative_to(PACKAGE).as_posix() for file in FILES])
def test_imports_point_down(file: Path) -> None:
    room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert room in ORDER, f"psf.{room} is a new room: give it a place here and in docs/architecture.md"
    if room in PAPER:
        allowed = PAPER[room] | sys.stdlib_module_names | {f"psf.{room}"}
        wrong = {name for name in imports_of(file) if room_of(name) not in allowed}
        wrong |= {name for name in imports_of(file) if name.startswith("detectron2")} - CONSTRUCTION
    else:
        allowed = {f"psf.{lower}" for lower in ORDER[: ORDER.index(room) + 1]}
        wrong = {name for name in imports_of(file) if name.startswith("psf") and room_of(name) not in allowed}
    assert not wrong, f"psf.{room} may not import these"


def test_the_plan_names_every_room() -> None:
    plan = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = [path for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    missing = [path.name for path in rooms if path.name != "__init__.py" and f"`psf/{path.name}`" not in plan]
    assert not missing, "docs/architecture.md, section Rooms, lacks these"
