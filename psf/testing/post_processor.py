"""The contract of post-processors: from candidates of one image to panoptic map and instances."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode

from psf.inference import KEPT, ImageGeometry, PostProcessor
from psf.structures import Candidates, PanopticClasses
from psf.testing.inputs import small_config

__all__ = ["check_post_processor"]

CLASSES = PanopticClasses(thing_ids=(0, 1), stuff_ids=(2, 3))
# An image of 48 x 80 pixels in a batch of 64 x 96, with masks at stride 8, and results at twice the image's size.
GEOMETRY = ImageGeometry(padded_size=(64, 96), image_size=(48, 80), output_size=(96, 160))
MASK_SIZE, OWN_MASK_SIZE = (8, 12), (6, 10)


def check_post_processor(post_processor: Callable[[CfgNode], Any], cfg: CfgNode | None = None) -> None:
    """Check a subclass of `psf.inference.PostProcessor`.

    Args:
        post_processor: called as (cfg), for example a class in POST_PROCESSOR_REGISTRY.
        cfg: has the keys that it reads; None: `small_config()`.

    Raises:
        AssertionError: if it violates a requirement; the message names the first.
    """
    processor = post_processor(cfg or small_config())
    check = _PostProcessorCheck(processor)
    check.check_results(_candidates())
    check.check_results(_candidates().select(torch.zeros(5, dtype=torch.bool)))
    check.check_results(_candidates()._replace(mask_scores=_candidates().mask_scores.bfloat16()))
    check.check_repeatable()
    check.check_padding()
    check.check_explain()
    check.check_saved()


def _candidates(noise: int = 0) -> Candidates:
    """Three things, two of them overlapping, above two stuff classes; `noise` seeds the scores in padding."""
    masks = 0.05 * torch.rand(5, *MASK_SIZE, generator=torch.Generator().manual_seed(0))
    masks[0, 1:4, 1:5] += 0.9
    masks[1, 1:4, 2:6] += 0.8
    masks[2, 3:5, 7:9] += 0.9
    masks[3, :3] += 0.9
    masks[4, 3:] += 0.9
    padding = torch.rand(5, *MASK_SIZE, generator=torch.Generator().manual_seed(100 + noise))
    height, width = (side + 1 for side in OWN_MASK_SIZE)  # interpolation at the border reads one more pixel
    masks[:, height:], masks[:, :, width:] = padding[:, height:], padding[:, :, width:]
    return Candidates(
        class_scores=torch.tensor([0.9, 0.6, 0.8, 0.9, 0.7]),
        class_indices=torch.tensor([0, 0, 1, 0, 1]),
        is_thing=torch.tensor([True, True, True, False, False]),
        mask_scores=masks,
        boxes_cxcywh_norm=torch.tensor([[0.3, 0.4, 0.4, 0.5]]).expand(5, 4).clone(),
    )


class _PostProcessorCheck:
    def __init__(self, processor: Any):
        self.name = type(processor).__name__
        self.require(isinstance(processor, PostProcessor), "expected a subclass of psf.inference.PostProcessor")
        self.processor: PostProcessor = processor

    def require(self, holds: bool, message: str) -> None:
        if not holds:
            raise AssertionError(f"{self.name}: {message}")

    def results(self, candidates: Candidates, processor: PostProcessor | None = None) -> dict[str, Any]:
        return (processor or self.processor).results(candidates, CLASSES, GEOMETRY, panoptic=True, instance=True)

    def check_results(self, candidates: Candidates) -> None:
        """Check types and shapes, that the map and its segments agree, and that the candidates are unchanged."""
        before = [None if x is None else x.clone() for x in candidates]
        results = self.results(candidates)
        fields = zip(Candidates._fields, candidates, before, strict=True)
        changed = [
            name for name, new, old in fields if new is not None and old is not None and not torch.equal(new, old)
        ]
        self.require(not changed, f"it changes its input in place: {', '.join(changed)}")
        panoptic_seg, segments = results["panoptic_seg"]
        self.require(
            tuple(panoptic_seg.shape) == GEOMETRY.output_size and panoptic_seg.dtype == torch.int32,
            f"the map is {tuple(panoptic_seg.shape)}, {panoptic_seg.dtype}; expected {GEOMETRY.output_size}, int32",
        )
        ids = [segment["id"] for segment in segments]
        self.require(ids == list(range(1, len(ids) + 1)), f"segment ids are {ids}; expected 1, 2, ... in their order")
        unknown = sorted(set(panoptic_seg.unique().tolist()) - {0, *ids})
        self.require(not unknown, f"the map has the ids {unknown}, which no segment has; 0 means no segment")
        for segment in segments:
            area = int((panoptic_seg == segment["id"]).sum())
            self.require(
                segment["area"] == area > 0,
                f"segment {segment['id']} has area {segment['area']}, and {area} pixels of the map; expected equal "
                "numbers above 0",
            )
        if not len(candidates.class_scores):
            self.require(not segments, "segments without candidates")

    def check_repeatable(self) -> None:
        self.require_same(self.results(_candidates()), self.results(_candidates()), "the map of a second call differs")

    def check_padding(self) -> None:
        message = "mask scores in padding change the map"
        self.require_same(self.results(_candidates(noise=0)), self.results(_candidates(noise=1)), message)

    def require_same(self, found: dict[str, Any], expected: dict[str, Any], message: str) -> None:
        self.require(torch.equal(found["panoptic_seg"][0], expected["panoptic_seg"][0]), message)

    def check_explain(self) -> None:
        """Check that `explain` reports "kept" for candidates that are segments or instances."""
        candidates = _candidates()
        results = self.results(candidates)
        outcomes = self.processor.explain(candidates, GEOMETRY, panoptic=True, instance=True)
        numbers = {"panoptic_seg": len(results["panoptic_seg"][1]), "instances": len(results["instances"])}
        for key, number in numbers.items():
            kept = outcomes[key].reasons.count(KEPT)
            self.require(kept == number, f"`explain` calls {kept} candidates kept; `{key}` has {number}")

    def check_saved(self) -> None:
        file = io.BytesIO()
        try:
            torch.save(self.processor, file)
            file.seek(0)
            loaded = torch.load(file, weights_only=False)
        except Exception as error:  # from pickle, or the post-processor's own methods
            raise AssertionError(f"{self.name}: torch.save and torch.load fail: {error}") from error
        expected = self.results(_candidates())
        self.require_same(
            self.results(_candidates(), loaded), expected, "the map after torch.save and torch.load differs"
        )
