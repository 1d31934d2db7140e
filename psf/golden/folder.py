"""A folder of reference numbers: what its cases.json describes, run by psf."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from psf.golden.evaluation import Tensors, evaluation_tensors
from psf.golden.formula import formula_image
from psf.golden.models import config_for, filled_model, given_images, read_manifest, released_names, without_dropout
from psf.golden.training import TrainingStep, training_step
from psf.meta_arch import PanopticSegFormer
from psf.post_processing import build_post_processor

__all__ = ["FilledModel", "GoldenFolder", "read_json"]


class FilledModel(NamedTuple):
    """A model with the weights that the formula gives."""

    model: PanopticSegFormer
    cfg: CfgNode
    parts: dict[str, list[str]]  # released name -> psf's names


class GoldenFolder:
    """Runs the cases of a folder, one model at a time.

    Args:
        path: the folder, with cases.json.
        dtype: what psf computes in.

    Raises:
        ValueError: if cases.json is missing or is none.
    """

    def __init__(self, path: Path, dtype: torch.dtype):
        self.path, self.dtype = path, dtype
        self.cases = read_json(path / "cases.json")
        config = self.cases.get("config")  # a yaml in the folder, where the model is not a released one
        self.config_file = None if config is None else str(path / config)
        self._models: dict[str, FilledModel] = {}

    def model(self, manifest: str) -> FilledModel:
        """The model of a manifest; kept for the next case."""
        if manifest not in self._models:
            self._models.clear()  # the largest has 221 million parameters
            shapes = read_manifest(self.path / manifest)
            cfg = config_for(shapes, self.config_file)
            self._models[manifest] = FilledModel(filled_model(cfg, shapes, self.dtype), cfg, released_names(shapes))
        return self._models[manifest]

    def evaluate(self, case: dict[str, Any]) -> Tensors:
        """A test run of one batch."""
        model, cfg, _ = self.model(case["manifest"])
        model.eval()
        cfg = cfg.clone()
        for kind in ("THINGS", "STUFF"):
            node = cfg.MODEL.PSF.POST_PROCESSOR[kind]
            node.T_CNF, node.T_KEEP = case["t_cnf"][kind.lower()], 1 - case["max_covered"][kind.lower()]
        model.post_processor = build_post_processor(cfg)
        images = [formula_image(x["height"], x["width"], x["seed"]) for x in case["images"]]
        with given_images(model, images, case["padded_size"]) as inputs:
            for x, (height, width) in zip(inputs, case["output_sizes"], strict=True):
                x.update(height=height, width=width)
            return evaluation_tensors(model, inputs, _dataset_ids(cfg, model))

    def train(self, node: dict[str, str]) -> Iterator[tuple[str, dict[str, Any], TrainingStep]]:
        """Name, description and training step of each case of the file that `train` names in cases.json."""
        model, _, parts = self.model(node["manifest"])
        without_dropout(model)
        for name, case in read_json(self.path / node["file"]).items():
            yield name, case, training_step(model, case, parts)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; ValueError naming the file if it is none."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: expected a JSON file of reference numbers: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected a JSON object, found a {type(content).__name__}")
    return content


def _dataset_ids(cfg: CfgNode, model: PanopticSegFormer) -> dict[int, int]:
    """Contiguous category id -> the data set's; without a data set, one more, as 0 is void."""
    if not cfg.DATASETS.TEST:
        return {i: i + 1 for i in model.classes.thing_ids + model.classes.stuff_ids}
    metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
    maps = (metadata.thing_dataset_id_to_contiguous_id, metadata.stuff_dataset_id_to_contiguous_id)
    return {contiguous: own for ids in maps for own, contiguous in ids.items()}
