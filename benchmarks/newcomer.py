#!/usr/bin/env python3
"""Amount of code to read: files and lines of one training step and of one image at test, and the package's structure.

    python benchmarks/newcomer.py [--config-file FILE] [KEY VALUE ...]      a minute on a CPU

A file counts if one of its functions runs during one training step (loading the batch, losses, gradients) or during
inference on one image. The image is a small generated scene, the weights are random. "Model" counts psf's files without
psf/ops (the operators), psf/data (loading) and psf/engine. "All" includes these, and Detectron2's files. Code that runs
at import or while the model is built does not count.

For another mask decoder, the script counts the files that define the imports from psf in the example of
docs/your-own-decoder.md, without psf.testing, which is only called. Modules are the files of psf/ except __init__.py.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import math
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import detectron2
import torch
from report import report
from tabulate import tabulate

import psf
from psf.engine import Trainer, build_config

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGE = Path(psf.__file__).resolve().parent
REPOSITORY = PACKAGE.parent
DETECTRON2 = Path(detectron2.__file__).resolve().parent
NOT_THE_MODEL = ("ops", "data", "engine")
SHORT = 60  # lines
PAGE = REPOSITORY / "docs" / "your-own-decoder.md"
SMALL_SCENES = [
    "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "DATASETS.TRAIN", "('psf_shapes_train',)", "DATASETS.TEST", "()",
    "INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.CROP.ENABLED", "False", "DATALOADER.NUM_WORKERS", "0",
    "SOLVER.IMS_PER_BATCH", "2",
]  # fmt: skip


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="coco/psf_R50_24ep.yaml", metavar="FILE", help="[%(default)s]")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config options")
    args = parser.parse_args(words)
    step, image = trace_files(args.config_file, args.opts)
    rows = [
        ["files, lines of one training step: model", size(model_files(step)), at_most(12, len(model_files(step)))],
        ["... all", size(step), ""],
        ["files, lines of one image at test: model", size(model_files(image)), at_most(12, len(model_files(image)))],
        ["... all", size(image), ""],
        *shape_rows(),
    ]
    table = tabulate(rows, ["metric", "psf", "target"], tablefmt="pipe", disable_numparse=True)
    names = "\n".join(
        f"* {title}: {', '.join(f'`{path.relative_to(PACKAGE)}`' for path in sorted(model_files(files)))}"
        for title, files in (("training step", step), ("image at test", image))
    )
    report("newcomer", f"{args.config_file}\n\n{table}\n\nThe model's files:\n\n{names}")


def trace_files(config_file: str, opts: Sequence[str]) -> tuple[set[Path], set[Path]]:
    """Files of psf and of Detectron2 that run in one training step, and for one image."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = build_config(config_file, [*SMALL_SCENES, "OUTPUT_DIR", folder, *opts])
        torch.manual_seed(0)
        model = Trainer.build_model(cfg)
        batches = iter(Trainer.build_train_loader(cfg))
    with running_files() as step:
        batch = next(batches)
        torch.stack(list(model(batch).values())).sum().backward()
    image = {"image": batch[0]["image"], "height": 96, "width": 96}
    model.eval()
    with torch.no_grad(), running_files() as test:
        model([image])
    return step, test


@contextmanager
def running_files() -> Iterator[set[Path]]:
    """Yields a set that gets, at the end, the files whose functions ran."""
    names: set[str] = set()
    files: set[Path] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_name != "<module>":
            names.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        yield files
    finally:
        sys.setprofile(None)
        paths = {Path(name).resolve() for name in names}
        files |= {path for path in paths if PACKAGE in path.parents or DETECTRON2 in path.parents}


def model_files(files: set[Path]) -> set[Path]:
    """psf's files without operators, loading and training loop."""
    own = {path for path in files if PACKAGE in path.parents}
    return {path for path in own if path.relative_to(PACKAGE).parts[0] not in NOT_THE_MODEL}


def shape_rows() -> list[list[str]]:
    """Rows without running code: the files for another decoder, and the package's folders and layers."""
    modules = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    entries = [path for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"]
    entries = [path for path in entries if path.name not in ("__init__.py", "__pycache__")]
    per_folder = {folder: sum(path.parent == folder for path in modules) for folder in {m.parent for m in modules}}
    largest = max(per_folder, key=lambda folder: per_folder[folder])
    short = [path for path in modules if count_lines(path) < SHORT]
    share = 100 * len(short) / len(modules)
    layers = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0][
        "layers"
    ]
    decoder = decoder_files() if PAGE.is_file() else set()
    return [
        ["files to read for another mask decoder", size(decoder), at_most(2, len(decoder) or math.inf)],
        ["entries of psf/", str(len(entries)), at_most(20, len(entries))],
        ["largest folder, modules", f"{per_folder[largest]} ({largest.name})", at_most(12, per_folder[largest])],
        [f"modules under {SHORT} lines", f"{share:.0f} % ({len(short)} of {len(modules)})", at_most(8, share)],
        ["import layers", str(len(layers)), at_most(6, len(layers))],
    ]


def decoder_files() -> set[Path]:
    """The files that define what the example in docs/your-own-decoder.md imports from psf."""
    files: set[Path] = set()
    (example, *_) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    for node in ast.walk(ast.parse(example)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "psf":
            files |= {defining_file(node.module, name.name) for name in node.names}
    return {path for path in files if PACKAGE / "testing" not in path.parents}


def defining_file(module: str, name: str) -> Path:
    """The file of psf that defines `module.name`, even if the module only imports it."""
    value = getattr(importlib.import_module(module), name)
    if callable(value) and (file := inspect.getsourcefile(value)):
        return Path(file).resolve()
    pattern = re.compile(rf"^{name}(:.*)? = ", re.M)  # a constant: where it is assigned
    [path] = [path for path in PACKAGE.rglob("*.py") if pattern.search(path.read_text(encoding="utf-8"))]
    return path


def count_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def size(files: set[Path]) -> str:
    return f"{len(files)} files, {sum(map(count_lines, files)):,} lines"


def at_most(target: int, value: float) -> str:
    """A cell with the target, and whether the value meets it."""
    return f"<= {target}: {'met' if value <= target else 'MISSED'}"


if __name__ == "__main__":
    main()
