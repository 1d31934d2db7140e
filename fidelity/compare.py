"""Compare psf with a folder of reference numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from fidelity.description import Described, read_described
from fidelity.evaluation import compare_evaluation
from fidelity.folder import GoldenFolder
from fidelity.initialisation import compare_initialisation, compare_optimizer
from fidelity.models import config_for, released_names
from fidelity.operators import compare_deformable_attention, compare_merging
from fidelity.stored import Report, StoredTensors
from fidelity.training_comparison import compare_costs, compare_training

__all__ = ["check_folder"]


def check_folder(path: Path, dtype: torch.dtype = torch.float32) -> Iterator[Report]:
    """Compare all cases of cases.json, and the optional files in its folder.

    Args:
        path: folder with cases.json, whose `eval` and `train` name manifests and files of reference numbers. Optional
            files: ops_msda.npz, ops_merge.npz, init_stats_*.json, optimizer_*.json, and *_costs.npz of a training file.
        dtype: of psf's computation. In float64, float64 references are preferred.

    Yields:
        A report after each case.

    Raises:
        UserError: if a file is missing or invalid.
    """
    folder = GoldenFolder(path, dtype)
    for name, case in folder.cases.object("eval").objects().items():
        yield _check_evaluation(folder, name, case)
    if "train" in folder.cases:
        yield from _check_training(folder, folder.cases.object("train"))
    yield from _check_operators(folder)
    yield from _check_start(folder)


def _check_evaluation(folder: GoldenFolder, name: str, case: Described) -> Report:
    found = folder.evaluate(case)
    stored = StoredTensors(folder.path / file for file in case["files"])
    squeezed = [] if case.get("crops_padding") else _padded_images(case)
    comparisons, skipped = compare_evaluation(name, found, stored, squeezed)
    unknown = [f"{name}: {x}" for x in stored.left if x not in skipped]
    return Report(comparisons, {f"{name}: {x}": why for x, why in skipped.items()}, unknown)


def _padded_images(case: Described) -> list[int]:
    return [b for b, x in enumerate(case["images"]) if [x["height"], x["width"]] != case["padded_size"]]


def _check_training(folder: GoldenFolder, node: Described) -> Iterator[Report]:
    costs_file = folder.path / node["file"].replace(".json", "_costs.npz")
    costs = StoredTensors([costs_file] if costs_file.exists() else [])
    for name, case, step in folder.train(node):
        report = compare_training(name, step, case, float64=folder.dtype == torch.float64)
        yield report._replace(comparisons=report.comparisons + compare_costs(name, step, costs))
    yield Report([], {}, [f"costs: {name}" for name in costs.left])


def _check_operators(folder: GoldenFolder) -> Iterator[Report]:
    file = folder.path / "ops_msda.npz"
    if file.exists():
        stored = StoredTensors([file])
        comparisons = compare_deformable_attention(stored, folder.dtype)
        yield Report(comparisons, {}, [f"deformable attention: {name}" for name in stored.left])
    file = folder.path / "ops_merge.npz"
    if file.exists():
        cfg = config_for([], "coco/released/psf_R50_24ep.yaml")
        ids = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        things, stuff = ids.thing_dataset_id_to_contiguous_id, ids.stuff_dataset_id_to_contiguous_id
        stored = StoredTensors([file])
        comparisons = compare_merging(stored, cfg, [*things, *stuff])
        yield Report(comparisons, {}, [f"merging: {name}" for name in stored.left])


def _check_start(folder: GoldenFolder) -> Iterator[Report]:
    for file in sorted(folder.path.glob("init_stats_*.json")):
        statistics = read_described(file)
        cfg = config_for(statistics, folder.config_file)
        torch.manual_seed(0)
        comparisons, skipped = compare_initialisation(build_model(cfg), released_names(statistics), statistics)
        yield Report(comparisons, {f"initialisation: {name}": why for name, why in skipped.items()}, [])
    for file in sorted(folder.path.glob("optimizer_*.json")):
        expected = read_described(file)
        cfg = config_for(expected["groups"], folder.config_file)
        yield Report(compare_optimizer(cfg, build_model(cfg), released_names(expected["groups"]), expected), {}, [])
