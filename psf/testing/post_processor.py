"""The contract of post-processors: from candidates of one image to panoptic map and instances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from torch import Tensor

from psf.inference import KEPT, ImageGeometry, InstanceSettings, MergingThresholds, PostProcessor, resize_masks
from psf.structures import Candidates, PanopticClasses, tight_boxes
from psf.testing.inputs import configs_to_check
from psf.testing.part import Check

__all__ = ["check_post_processor"]

CLASSES = PanopticClasses(thing_ids=(0, 4, 1), stuff_ids=(5, 2, 3))
# An image of 48 x 80 pixels in a batch of 64 x 96, with masks at stride 8, and results at twice the image's size.
GEOMETRY = ImageGeometry(padded_size=(64, 96), image_size=(48, 80), output_size=(96, 160))
MASK_SIZE, OWN_MASK_SIZE = (8, 12), (6, 10)
INSIDE = 0.5  # the candidates' scores are higher inside their region, and lower elsewhere
ATTRIBUTES = {
    "things": MergingThresholds,
    "stuff": MergingThresholds,
    "configured": tuple,
    "is_tuned": bool,
    "mask_threshold": (int, float),
    "extra_pixels": (int, float),
    "instance": InstanceSettings,
}
SEGMENT = {"id": int, "category_id": int, "isthing": bool, "score": float, "area": int}


def check_post_processor(post_processor: Callable[[CfgNode], Any], cfg: CfgNode | None = None) -> None:
    """Check a subclass of `psf.inference.PostProcessor`.

    Args:
        post_processor: called as (cfg), for example a class in POST_PROCESSOR_REGISTRY.
        cfg: has the keys that it reads; None: `small_config()`, then `small_config("small/psf_small.yaml")`.

    Raises:
        AssertionError: if it violates a requirement; the message names the first, and the config.
    """
    for context, one in configs_to_check(cfg).items():
        _PostProcessorCheck(post_processor, one, context).run()


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


class _PostProcessorCheck(Check):
    def __init__(self, post_processor: Callable[[CfgNode], Any], cfg: CfgNode, context: str):
        super().__init__(getattr(post_processor, "__name__", "the post-processor"), context)
        processor = self.built(lambda: post_processor(cfg))
        self.name = type(processor).__name__
        self.require(isinstance(processor, PostProcessor), "expected a subclass of psf.inference.PostProcessor")
        self.processor: PostProcessor = processor

    def run(self) -> None:
        """All checks."""
        self.check_attributes()
        everything = _candidates()
        for candidates in (
            everything,
            everything.select(torch.zeros(5, dtype=torch.bool)),
            everything.select(everything.is_thing),
            everything.select(~everything.is_thing)._replace(boxes_cxcywh_norm=None),
            everything._replace(mask_scores=everything.mask_scores.bfloat16()),
        ):
            self.check_results(candidates)
        self.check_repeatable()
        self.check_padding()
        self.check_explain()

    def check_attributes(self) -> None:
        """Check what psf reads and sets."""
        for name, kind in ATTRIBUTES.items():
            value = getattr(self.processor, name, None)
            self.require(
                isinstance(value, kind),  # type: ignore[arg-type]
                f"its attribute `{name}` is {value!r}; psf reads it: call super().__init__ with the arguments of "
                "PostProcessor",
            )

    def results(self, candidates: Candidates) -> dict[str, Any]:
        try:
            return self.processor.results(candidates, CLASSES, GEOMETRY, panoptic=True, instance=True)
        except Exception as error:
            self.fail(f"`results` fails for {len(candidates.class_scores)} candidates", error)

    def check_results(self, candidates: Candidates) -> None:
        """Check the map, its segments and the instances, and that the candidates are unchanged."""
        before = [None if x is None else x.clone() for x in candidates]
        results = self.results(candidates)
        fields = zip(Candidates._fields, candidates, before, strict=True)
        changed = [
            name for name, new, old in fields if new is not None and old is not None and not torch.equal(new, old)
        ]
        self.require(not changed, f"it changes its input in place: {', '.join(changed)}")
        self.check_panoptic(candidates, *results["panoptic_seg"])
        self.check_instances(candidates, results["instances"])

    def check_panoptic(self, candidates: Candidates, panoptic_seg: Tensor, segments: list[dict[str, Any]]) -> None:
        """Check that map and segments agree with each other and with the candidates."""
        self.require(
            tuple(panoptic_seg.shape) == GEOMETRY.output_size and panoptic_seg.dtype == torch.int32,
            f"the map is {tuple(panoptic_seg.shape)}, {panoptic_seg.dtype}; expected {GEOMETRY.output_size}, int32",
        )
        for segment in segments:
            kinds = {key: type(value) for key, value in segment.items()}
            self.require(kinds == SEGMENT, f"a segment has {_text(kinds)}; expected {_text(SEGMENT)}")
        ids = [segment["id"] for segment in segments]
        self.require(ids == list(range(1, len(ids) + 1)), f"segment ids are {ids}; expected 1, 2, ... in their order")
        unknown = sorted(set(panoptic_seg.unique().tolist()) - {0, *ids})
        self.require(not unknown, f"the map has the ids {unknown}, which no segment has; 0 means no segment")
        for segment in segments:
            name, pixels = f"segment {segment['id']}", panoptic_seg == segment["id"]
            area = int(pixels.sum())
            self.require(
                segment["area"] == area > 0,
                f"{name} has area {segment['area']}, and {area} pixels of the map; expected equal numbers above 0",
            )
            self.check_score(name, segment["score"])
            self.check_class(name, candidates, segment["category_id"], segment["isthing"], pixels)
        stuff = [segment["category_id"] for segment in segments if not segment["isthing"]]
        self.require(len(stuff) == len(set(stuff)), f"stuff segments have the classes {stuff}; expected each once")

    def check_score(self, name: str, score: float) -> None:
        self.require(0 <= score <= 1, f"{name} has score {score:.3g}; expected a confidence in [0, 1]")

    def check_class(self, name: str, candidates: Candidates, category_id: int, isthing: bool, pixels: Tensor) -> None:
        """A candidate of the class has part of its mask at the (H, W) bool pixels."""
        ids = CLASSES.thing_ids if isthing else CLASSES.stuff_ids
        kind = "thing" if isthing else "stuff"
        self.require(category_id in ids, f"{name} has the {kind} class {category_id}; expected one of {sorted(ids)}")
        own = (candidates.is_thing == isthing) & (candidates.class_indices == ids.index(category_id))
        masks = resize_masks(candidates.select(own).mask_scores, GEOMETRY) > INSIDE
        self.require(
            bool((masks & pixels).any()),
            f"{name} has the {kind} class {category_id}, but no candidate of this class has a mask in its pixels; "
            "expected the contiguous id of the candidate's class",
        )

    def check_instances(self, candidates: Candidates, instances: Any) -> None:
        """Check fields, their lengths and ranges, and that classes and boxes are those of the masks."""
        settings = self.processor.instance
        self.require(isinstance(instances, Instances), f"instances are a {type(instances).__name__}, not Instances")
        size = tuple(instances.image_size)
        self.require(size == GEOMETRY.output_size, f"instances have size {size}; expected {GEOMETRY.output_size}")
        missing = {"pred_masks", "pred_boxes", "scores", "pred_classes"} - instances.get_fields().keys()
        self.require(not missing, f"instances lack {', '.join(sorted(missing))}")
        number, most = len(instances), min(int(candidates.is_thing.sum()), settings.max_per_image)
        self.require(number <= most, f"{number} instances; expected at most {most}: things, and max_per_image")
        masks, scores, boxes = instances.pred_masks, instances.scores, instances.pred_boxes
        self.require_tensor("pred_masks", masks, (number, *GEOMETRY.output_size), [torch.bool])
        self.require_tensor("scores", scores, (number,), [torch.float32])
        self.require_tensor("pred_classes", instances.pred_classes, (number,), [torch.int64])
        self.require(isinstance(boxes, Boxes), f"pred_boxes are a {type(boxes).__name__}; expected Boxes")
        self.require_tensor("pred_boxes", boxes.tensor, (number, 4), [torch.float32])
        for i, (score, category_id) in enumerate(zip(scores.tolist(), instances.pred_classes.tolist(), strict=True)):
            self.check_score(f"instance {i}", score)
            self.require(
                score >= settings.score_thresh,
                f"instance {i} has score {score:.3g}, less than `instance.score_thresh` {settings.score_thresh:.3g}",
            )
            self.require(bool(masks[i].any()), f"instance {i} has an empty mask; expected none")
            self.check_class(f"instance {i}", candidates, category_id, True, masks[i])
        self.require(
            torch.equal(scores, scores.sort(descending=True).values), "instances are not sorted by score, best first"
        )
        self.check_boxes(masks, boxes.tensor)

    def check_boxes(self, masks: Tensor, boxes: Tensor) -> None:
        height, width = GEOMETRY.output_size
        is_inside = (boxes >= 0) & (boxes <= boxes.new_tensor([width, height, width, height]))
        is_ordered = boxes[:, :2] <= boxes[:, 2:]
        self.require(
            bool(is_inside.all() and is_ordered.all()),
            f"pred_boxes are {boxes.tolist()}; expected x0, y0, x1, y1 in pixels of the {width} x {height} output",
        )
        if self.processor.instance.boxes == "mask":
            tight = tight_boxes(masks)[0]
            self.require(
                torch.equal(boxes, tight.to(boxes)),
                f"pred_boxes are {boxes.tolist()}; expected the tight boxes of the masks, {tight.tolist()}, as "
                'TEST.INSTANCE.BOXES is "mask"',
            )

    def check_repeatable(self) -> None:
        self.require_same(self.results(_candidates()), self.results(_candidates()), "of a second call differs")

    def check_padding(self) -> None:
        message = "depends on mask scores in padding"
        self.require_same(self.results(_candidates(noise=0)), self.results(_candidates(noise=1)), message)

    def require_same(self, found: dict[str, Any], expected: dict[str, Any], message: str) -> None:
        self.require(torch.equal(found["panoptic_seg"][0], expected["panoptic_seg"][0]), f"the map {message}")
        fields = [
            (getattr(found["instances"], name), getattr(expected["instances"], name))
            for name in ("pred_masks", "scores", "pred_classes")
        ]
        is_same = found["panoptic_seg"][1] == expected["panoptic_seg"][1] and all(torch.equal(*x) for x in fields)
        self.require(is_same, f"the list of segments or of instances {message}")

    def check_explain(self) -> None:
        """Check that `explain` reports "kept" for candidates that are segments or instances."""
        candidates = _candidates()
        results = self.results(candidates)
        try:
            outcomes = self.processor.explain(candidates, GEOMETRY, panoptic=True, instance=True)
        except Exception as error:
            self.fail("`explain` fails", error)
        numbers = {"panoptic_seg": len(results["panoptic_seg"][1]), "instances": len(results["instances"])}
        for key, number in numbers.items():
            kept = outcomes[key].reasons.count(KEPT)
            self.require(kept == number, f"`explain` calls {kept} candidates kept; `{key}` has {number}")


def _text(kinds: dict[str, type]) -> str:
    return ", ".join(f"{key} ({kind.__name__})" for key, kind in kinds.items()) or "no keys"
