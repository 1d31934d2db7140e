"""Run a training step; returns losses, gradient norms and matchings under the names of the reference."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.structures import Instances

from fidelity.formula import formula_gt, formula_image
from fidelity.models import given_images
from psf.losses import Assignment, PerLayerAssigner
from psf.meta_arch import PanopticSegFormer
from psf.structures import LocatedQueries, PanopticTargets

__all__ = ["TrainingStep", "training_step"]


@dataclasses.dataclass
class RecordedMatching:
    """Calls `inner` and records its results.

    Args:
        inner: the model's matching.
    """

    inner: PerLayerAssigner
    located: LocatedQueries | None = None
    targets: list[PanopticTargets] = dataclasses.field(default_factory=list)
    layers: list[list[Assignment]] = dataclasses.field(default_factory=list)  # per location layer, per image
    kept: list[list[int]] = dataclasses.field(default_factory=list)  # per image
    masks: list[Assignment] = dataclasses.field(default_factory=list)  # per image
    mask_scores: torch.Tensor | None = None  # (B, M, h, w) of the kept queries

    def select(self, located: LocatedQueries, targets: list[PanopticTargets]) -> Any:
        """`PerLayerAssigner.select`, recorded."""
        self.located, self.targets = located, targets
        selected = self.inner.select(located, targets)
        assert selected.kept is not None
        self.layers, self.kept = selected.location_assignments, [rows.tolist() for rows in selected.kept]
        return selected

    def assign(self, predictions: Any, selected: Any, targets: list[PanopticTargets]) -> Any:
        """`PerLayerAssigner.assign`, recorded."""
        assignments = self.inner.assign(predictions, selected, targets)
        self.masks = assignments.masks
        self.mask_scores = predictions.things.mask_scores[-1]
        return assignments

    def entries(self) -> list[dict[str, Any]]:
        """All matchings, in the format of the reference."""
        last = len(self.layers) - 1
        entries: list[dict[str, Any]] = []
        for i, layer in enumerate(self.layers):
            for b, pairs in enumerate(layer):
                entry: dict[str, Any] = {"assigner": "assigner_filter" if i == last else "assigner"}
                entry |= {"num_queries": self.num_queries, "pairs": _pairs(pairs)}
                if i == last:
                    entry["kept_queries"] = self.kept[b]
                entries.append(entry)
        for kept, pairs in zip(self.kept, self.masks, strict=True):
            entries.append({"assigner": "assigner_with_mask", "num_queries": len(kept), "pairs": _pairs(pairs)})
        return entries

    @property
    def num_queries(self) -> int:
        """Number of thing queries."""
        assert self.located is not None
        return self.located.layers[-1].class_logits.shape[1]

    def costs(self) -> dict[str, np.ndarray]:
        """The cost matrices of the first image, and their assignments."""
        assert self.located is not None and self.mask_scores is not None
        target, last = self.targets[0], self.located.layers[-1]
        found: dict[str, np.ndarray] = {}
        named = [
            (f"layer{i}" if layer is not last else f"layer{i}_filter", layer)
            for i, layer in enumerate(self.located.layers)
        ]
        for (name, layer), pairs in zip(named, self.layers, strict=True):
            cost = self.inner.matcher.cost(layer.class_logits[0], layer.locations[0], None, target)
            found.update(_cost_entries(name, cost, pairs[0]))
        rows = torch.tensor(self.kept[0], dtype=torch.long)
        scores = self.mask_scores[0, : len(rows)]
        cost = self.inner.second_matcher.cost(last.class_logits[0][rows], last.locations[0][rows], scores, target)
        return {**found, **_cost_entries("mask", cost, self.masks[0])}


def _pairs(assignment: Assignment) -> list[list[int]]:
    return torch.stack((assignment.queries, assignment.things), dim=1).tolist()


def _cost_entries(name: str, cost: torch.Tensor, pairs: Assignment) -> dict[str, np.ndarray]:
    return {f"{name}_cost": cost.numpy(), f"{name}_rows": pairs.queries.numpy(), f"{name}_cols": pairs.things.numpy()}


class TrainingStep(NamedTuple):
    """Results of one forward and backward pass."""

    losses: dict[str, float]  # by the reference's names
    gradient_norms: dict[str, float | None]  # by released names; None: no gradient
    matching: RecordedMatching


def training_step(model: PanopticSegFormer, case: dict[str, Any], parts: dict[str, list[str]]) -> TrainingStep:
    """Compute the losses, and the gradients of their sum, for the images and the ground truth of a case.

    Args:
        model: of the released recipe, in training mode without dropout.
        case: with `images`, rows of height, width, image seed, ground truth seed, number of things and of stuff; and
            `pad`, the padded size, or null for the largest height and width.
        parts: released name -> psf's names.
    """
    images, instances = [], []
    classes = model.classes
    for height, width, image_seed, gt_seed, num_things, num_stuff in case["images"]:
        images.append(formula_image(height, width, image_seed))
        gt = formula_gt(
            height,
            width,
            gt_seed,
            num_things,
            num_stuff,
            num_thing_classes=len(classes.thing_ids),
            num_stuff_classes=len(classes.stuff_ids),
        )
        ids = np.array(classes.thing_ids + classes.stuff_ids)[gt.labels]
        instances.append(
            Instances((height, width), gt_classes=torch.from_numpy(ids), gt_masks=torch.from_numpy(gt.masks))
        )
    padded_size = case["pad"] or np.max([image.shape[:2] for image in images], axis=0).tolist()
    assert isinstance(model.matching, PerLayerAssigner)
    inner, matching = model.matching, RecordedMatching(model.matching)
    model.zero_grad(set_to_none=True)
    model.matching = matching
    try:
        with given_images(model, images, padded_size) as inputs:
            losses = model([{**x, "instances": gt} for x, gt in zip(inputs, instances, strict=True)])
    finally:
        model.matching = inner
    torch.stack(list(losses.values())).sum().backward()
    named_losses = {_released_loss(name, losses): x.item() for name, x in losses.items()}
    return TrainingStep(named_losses, _gradient_norms(model, parts), matching)


def _gradient_norms(model: PanopticSegFormer, parts: dict[str, list[str]]) -> dict[str, float | None]:
    """Norms by released name; of a parameter that psf splits, the norm of all its parts together.

    Parameters that psf drops are missing, and so are frozen norms, which Detectron2 keeps as buffers.
    """
    parameters = dict(model.named_parameters())
    norms: dict[str, float | None] = {}
    for released, names in parts.items():
        own = [parameters[name].grad for name in names if name in parameters]
        squares = [grad.square().sum().item() for grad in own if grad is not None]
        if own:
            norms[released] = sum(squares) ** 0.5 if squares else None
    return norms


def _released_loss(name: str, losses: dict[str, Any]) -> str:
    """psf's name of a loss term -> the released one: "loss_det_l1_3" is "d3.loss_bbox".

    Numbers count the layers except the last one, which for masks is the tail. The stuff classes have no tail, and the
    released names number their last layer, too.
    """
    word, _, layer = name.rpartition("_")
    if not layer.isdigit():
        word, layer = name, ""
    if word == "loss_cls_stuff":
        layer = layer or str(sum(other.startswith(word) for other in losses) - 1)
        return f"d{layer}.loss_cls_stuff_f"
    released = {
        "loss_det_cls": "loss_cls",
        "loss_det_l1": "loss_bbox",
        "loss_det_giou": "loss_iou",
        "loss_seg_things": "loss_mask_things",
        "loss_seg_stuff": "loss_mask_stuff",
    }[word]
    if not layer:
        return released
    return f"d{layer}.{released}" + ("_f" if "_mask_" in released else "")
