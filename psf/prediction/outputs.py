"""What a model has found in one image, from which its results are made when they are asked for."""

from __future__ import annotations

import abc
import copy
from typing import Any, NamedTuple

import torch
from detectron2.structures import Instances
from torch import Tensor

from psf.errors import UserError
from psf.inference import CandidateOutcomes, ImageGeometry, PostProcessor, semantic_classes
from psf.inference.results import join_stuff_segments, panoptic_result
from psf.meta_arch import PanopticSegFormer
from psf.ops.transfer import download_arrays
from psf.structures import Candidates, PanopticClasses

__all__ = ["CandidateOutput", "DetectronOutput", "ImageOutput", "PanopticSegments", "Thresholds"]


class Thresholds(NamedTuple):
    """Changes of the thresholds of mask-wise merging, for things and stuff; None: as they are."""

    confidence: float | None = None  # t_cnf, and SCORE_THRESH of instances
    keep: float | None = None  # t_keep


class PanopticSegments(NamedTuple):
    """A panoptic result in Detectron2's form."""

    panoptic_seg: Tensor  # (H, W) int32 on the CPU
    segments_info: list[dict[str, Any]]
    query_embeddings: Tensor | None  # (S, D) float32 on the CPU, in the order of the segments; None: unknown


class ImageOutput(abc.ABC):
    """The output of a model for one image."""

    @abc.abstractmethod
    def panoptic(self, thresholds: Thresholds) -> PanopticSegments:
        """The panoptic result."""

    @abc.abstractmethod
    def instances(self, thresholds: Thresholds) -> Instances:
        """The instances, on the CPU."""

    @abc.abstractmethod
    def semantic(self) -> Tensor:
        """(H, W) int32, the channel of `PanopticClasses.semantic_channels` with the highest score, on the CPU."""

    @property
    @abc.abstractmethod
    def num_bytes(self) -> int:
        """Memory that it keeps, mostly on the device of the model."""

    @abc.abstractmethod
    def explain(self, task: str, thresholds: Thresholds) -> Explainable:
        """Why each candidate is, or is not, in the result of the task "panoptic" or "instance"."""


class Explainable(NamedTuple):
    """The candidates of an image and what became of them in a result."""

    class_ids: list[int]  # contiguous ids
    outcomes: CandidateOutcomes
    processor: PostProcessor


class CandidateOutput(ImageOutput):
    """The candidates that a PanopticSegFormer has found in one image.

    Args:
        candidates: of the image, on the device of the model: N masks of (h, w).
        geometry: sizes of the image.
        classes: of the model.
        processor: of the model.
    """

    def __init__(
        self, candidates: Candidates, geometry: ImageGeometry, classes: PanopticClasses, processor: PostProcessor
    ) -> None:
        self._candidates, self._geometry = candidates, geometry
        self._classes, self._processor = classes, processor

    @classmethod
    def of_model(cls, model: PanopticSegFormer, candidates: Candidates, geometry: ImageGeometry) -> CandidateOutput:
        """With the classes and the thresholds of the model."""
        return cls(candidates, geometry, model.classes, model.post_processor)

    def _with(self, thresholds: Thresholds) -> PostProcessor:
        named = {"t_cnf": thresholds.confidence, "t_keep": thresholds.keep}
        changes = {name: value for name, value in named.items() if value is not None}
        if not changes:
            return self._processor
        processor = copy.copy(self._processor)
        processor.things, processor.stuff = (
            numbers._replace(**changes) for numbers in (processor.things, processor.stuff)
        )
        if thresholds.confidence is not None:
            processor.instance = processor.instance._replace(score_thresh=thresholds.confidence)
        return processor

    @property
    def num_bytes(self) -> int:
        return sum(_num_bytes(one) for one in self._candidates)

    @torch.no_grad()
    def panoptic(self, thresholds: Thresholds) -> PanopticSegments:
        candidates = self._candidates
        segmentation = self._with(thresholds).panoptic(candidates, self._geometry)
        kinds = download_arrays(candidates.is_thing, candidates.class_indices)
        segmentation = join_stuff_segments(segmentation, *kinds)
        panoptic_seg, infos = panoptic_result(
            segmentation, candidates, self._classes, classes_on_host=(kinds[0], kinds[1])
        )
        embeddings = None
        if candidates.query_embeddings is not None:
            rows = [segment.candidate for segment in segmentation.segments]
            embeddings = candidates.query_embeddings[rows].float().cpu()
        return PanopticSegments(panoptic_seg.cpu(), infos, embeddings)

    @torch.no_grad()
    def instances(self, thresholds: Thresholds) -> Instances:
        processor = self._with(thresholds)
        return processor.instances(self._candidates, self._classes, self._geometry).to("cpu")

    @torch.no_grad()
    def semantic(self) -> Tensor:
        return semantic_classes(self._candidates, self._classes, self._geometry).cpu()

    @torch.no_grad()
    def explain(self, task: str, thresholds: Thresholds) -> Explainable:
        processor, candidates = self._with(thresholds), self._candidates
        if task == "instance":
            outcomes = processor.explain(candidates, self._geometry, panoptic=False, instance=True)["instances"]
            candidates = candidates.select(candidates.is_thing)
        else:
            outcomes = processor.explain(candidates, self._geometry, panoptic=True, instance=False)["panoptic_seg"]
        is_thing, indices = download_arrays(candidates.is_thing, candidates.class_indices)
        ids = [
            (self._classes.thing_ids if kind else self._classes.stuff_ids)[index]
            for kind, index in zip(is_thing.tolist(), indices.tolist(), strict=True)
        ]
        return Explainable(ids, outcomes, processor)


class DetectronOutput(ImageOutput):
    """The results of any other model of Detectron2, which has made them already."""

    def __init__(self, result: dict[str, Any]) -> None:
        self._result = result

    def _of(self, key: str, thresholds: Thresholds) -> Any:
        if thresholds != Thresholds():
            raise UserError("this model is no PanopticSegFormer: its thresholds are those of its config")
        if key not in self._result:
            raise UserError(f"this model gives no {key!r}, only {', '.join(self._result) or 'nothing'}")
        return self._result[key]

    @property
    def num_bytes(self) -> int:
        tensors = [self._result.get("sem_seg"), self._result.get("panoptic_seg", [None])[0]]
        if "instances" in self._result:
            tensors += self._result["instances"].get_fields().values()
        return sum(_num_bytes(one) for one in tensors)

    def panoptic(self, thresholds: Thresholds) -> PanopticSegments:
        panoptic_seg, infos = self._of("panoptic_seg", thresholds)
        return PanopticSegments(panoptic_seg.cpu().to(torch.int32), infos, None)

    def instances(self, thresholds: Thresholds) -> Instances:
        return self._of("instances", thresholds).to("cpu")

    def semantic(self) -> Tensor:
        sem_seg: Tensor = self._of("sem_seg", Thresholds())
        return (sem_seg if sem_seg.dim() == 2 else sem_seg.argmax(dim=0)).cpu().to(torch.int32)

    def explain(self, task: str, thresholds: Thresholds) -> Explainable:
        raise UserError("this model is no PanopticSegFormer, and does not explain its results")


def _num_bytes(value: Any) -> int:
    """Memory of a tensor, or of boxes and masks that hold one; 0 of anything else."""
    value = getattr(value, "tensor", value)
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0
