"""Record psf's outputs as reference numbers for later versions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from fidelity.description import read_described
from fidelity.folder import GoldenFolder

__all__ = ["record_folder"]

LARGE = 4000  # elements; of larger tensors only every STRIDE-th element is kept
STRIDE = 7


def record_folder(path: Path) -> list[Path]:
    """Run the `eval` and `train` cases of a folder and write their results over the files that cases.json names.

    An `eval` case must name one file. The `images` and `pad` of a training case are kept.

    Returns:
        Paths of the written files.

    Raises:
        UserError: if a file is missing or invalid.
    """
    folder = GoldenFolder(path, torch.float32)
    written = []
    for case in folder.cases.object("eval").objects().values():
        (name,) = case["files"]
        arrays: dict[str, np.ndarray] = {}
        for key, value in folder.evaluate(case).items():
            arrays.update(_packed(key, value.numpy()))
        np.savez_compressed(path / name, **arrays)  # type: ignore[arg-type]
        written.append(path / name)
    if "train" in folder.cases:
        node = folder.cases.object("train")
        file = path / node["file"]
        cases = read_described(file)
        for name, _, step in folder.train(node):
            result = {
                "total": sum(step.losses.values()),
                "losses": step.losses,
                "grad_norms": step.gradient_norms,
                "matching": step.matching.entries(),
            }
            cases[name] = {"images": cases[name]["images"], "pad": cases[name]["pad"], **result}
        file.write_text(json.dumps(cases, indent=1) + "\n")
        written.append(file)
    return written


def _packed(name: str, value: np.ndarray) -> dict[str, np.ndarray]:
    shape = np.array(value.shape)
    if value.dtype == bool:
        return {f"{name}__packed": np.packbits(value), f"{name}__shape": shape}
    entries = {}
    if value.dtype.kind == "f" and value.size:
        exact = value.astype(np.float64)
        entries[f"{name}__stats"] = np.array([exact.mean(), exact.std(), np.abs(exact).sum()])
    if value.size <= LARGE or value.dtype.kind != "f":
        return {name: value, **entries}
    kept = {f"{name}__flat": value.reshape(-1)[::STRIDE], f"{name}__stride": np.array(STRIDE), f"{name}__shape": shape}
    return {**kept, **entries}
