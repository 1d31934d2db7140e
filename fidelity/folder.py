"""Run the cases of a folder of reference numbers with psf."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from fidelity.description import Described, read_described
from fidelity.evaluation import Tensors, evaluation_tensors
from fidelity.formula import formula_image
from fidelity.models import config_for, filled_model, given_images, read_manifest, released_names, without_dropout
from fidelity.training import TrainingStep, training_step
from psf.errors import UserError
from psf.inference import build_post_processor
from psf.meta_arch import PanopticSegFormer
from psf.structures import CategoryIds

__all__ = ["FilledModel", "GoldenFolder"]


class FilledModel(NamedTuple):
    """A model with the weights that the formula gives."""

    model: PanopticSegFormer
    cfg: CfgNode
    parts: dict[str, list[str]]  # released name -> psf's names


class GoldenFolder:
    """Runs the cases of a folder, one model at a time.

    Args:
        path: the folder, with cases.json.
        dtype: of psf's computation.

    Raises:
        UserError: if cases.json is missing or invalid.
    """

    def __init__(self, path: Path, dtype: torch.dtype):
        self.path, self.dtype = path, dtype
        self.cases = read_described(path / "cases.json")
        config = self.cases.get("config")  # a yaml in the folder, unless the model is a released one
        self.config_file = None if config is None else str(path / config)
        self._models: dict[str, FilledModel] = {}

    def model(self, manifest: str) -> FilledModel:
        """The model of a manifest; cached for the next case."""
        if manifest not in self._models:
            self._models.clear()  # the largest has 221 million parameters
            shapes = read_manifest(self.path / manifest)
            cfg = config_for(shapes, self.config_file)
            self._models[manifest] = FilledModel(filled_model(cfg, shapes, self.dtype), cfg, released_names(shapes))
        return self._models[manifest]

    def evaluate(self, case: Described) -> Tensors:
        """Run the model on the batch of a case; returns its tensors.

        Raises:
            UserError: if the case lacks a key, or its scale factors contradict its sizes.
        """
        _expect_sizes(case)
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

    def train(self, node: Described) -> Iterator[tuple[str, Described, TrainingStep]]:
        """Name, description and training step of each case of the file that `train` names in cases.json."""
        model, _, parts = self.model(node["manifest"])
        without_dropout(model)
        for name, case in read_described(self.path / node["file"]).objects().items():
            yield name, case, training_step(model, case, parts)


def _expect_sizes(case: Described) -> None:
    """Check that each image has an output size and that `scale_factors`, image size over output size, agree."""
    images, sizes, factors = case["images"], case["output_sizes"], case.get("scale_factors")
    if len(sizes) != len(images):
        raise UserError(f"{case.place}: output_sizes: expected {len(images)}, one per image, found {sizes}")
    if factors is None:
        return
    rows = factors if len(factors) == len(images) else [factors]  # a single image may lack the outer brackets
    for image, (height, width), found in zip(images, sizes, rows, strict=True):
        scale = np.array([image["width"] / width, image["height"] / height] * 2)  # as boxes: x y x y
        if found is not None and not np.allclose(np.ravel(found), scale[: np.size(found)], rtol=1e-3):
            raise UserError(
                f"{case.place}: scale_factors: expected {scale.tolist()} for output size {height} x {width}, "
                f"found {found}"
            )


def _dataset_ids(cfg: CfgNode, model: PanopticSegFormer) -> dict[int, int]:
    """Contiguous category id -> the dataset's id; without a dataset, the id plus 1, because 0 is void."""
    if not cfg.DATASETS.TEST:
        return {i: i + 1 for i in model.classes.thing_ids + model.classes.stuff_ids}
    ids = CategoryIds.from_metadata(MetadataCatalog.get(cfg.DATASETS.TEST[0]))
    return ids.things | ids.stuff
