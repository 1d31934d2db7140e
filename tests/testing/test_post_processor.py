"""psf's own post-processors meet the contract, and post-processors that break a rule are told which one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from psf.inference import ClassTimesMask, MaskWiseMerging, PixelArgmax
from psf.structures import Candidates
from psf.testing import check_post_processor


@pytest.mark.parametrize("post_processor", [MaskWiseMerging, PixelArgmax, ClassTimesMask])
def test_own_post_processors(post_processor: Any) -> None:
    check_post_processor(post_processor)


class WrongSize(MaskWiseMerging):
    def panoptic(self, *args: Any, **kwargs: Any) -> Any:
        merged = super().panoptic(*args, **kwargs)
        return merged._replace(panoptic_seg=merged.panoptic_seg[::2, ::2])


class IdsFromZero(MaskWiseMerging):
    def results(self, *args: Any, **kwargs: Any) -> Any:
        results = super().results(*args, **kwargs)
        for segment in results["panoptic_seg"][1]:
            segment["id"] -= 1
        return results


class UnknownIds(MaskWiseMerging):
    def results(self, *args: Any, **kwargs: Any) -> Any:
        results = super().results(*args, **kwargs)
        results["panoptic_seg"][1].pop()
        return results


class WrongArea(MaskWiseMerging):
    def panoptic(self, *args: Any, **kwargs: Any) -> Any:
        merged = super().panoptic(*args, **kwargs)
        return merged._replace(segments=[x._replace(area=x.area + 1) for x in merged.segments])


class ChangesInput(MaskWiseMerging):
    def results(self, candidates: Candidates, *args: Any, **kwargs: Any) -> Any:
        candidates.mask_scores.clamp_(max=0.5)
        return super().results(candidates, *args, **kwargs)


class RandomThreshold(MaskWiseMerging):
    def results(self, *args: Any, **kwargs: Any) -> Any:
        self.mask_threshold = 0.9 * float(torch.rand(()))
        return super().results(*args, **kwargs)


class SeesPadding(MaskWiseMerging):
    def results(self, candidates: Candidates, *args: Any, **kwargs: Any) -> Any:
        if len(candidates.mask_scores):
            self.mask_threshold = float(candidates.mask_scores[0, -1, -1])
        return super().results(candidates, *args, **kwargs)


class ExplainsNothing(MaskWiseMerging):
    def explain(self, *args: Any, **kwargs: Any) -> Any:
        outcomes = super().explain(*args, **kwargs)
        return {key: one._replace(reasons=["T_CNF"] * len(one.reasons)) for key, one in outcomes.items()}


class Segments(MaskWiseMerging):
    """Changes each dict of segments_info, by `change`."""

    def results(self, *args: Any, **kwargs: Any) -> Any:
        results = super().results(*args, **kwargs)
        for segment in results["panoptic_seg"][1]:
            self.change(segment)
        return results

    def change(self, segment: dict[str, Any]) -> None:
        raise NotImplementedError


class NoCategory(Segments):
    def change(self, segment: dict[str, Any]) -> None:
        del segment["category_id"]


class NoKind(Segments):
    def change(self, segment: dict[str, Any]) -> None:
        del segment["isthing"]


class UnknownCategory(Segments):
    def change(self, segment: dict[str, Any]) -> None:
        segment["category_id"] += 100


class IndexForId(Segments):
    def change(self, segment: dict[str, Any]) -> None:
        if segment["isthing"]:
            segment["category_id"] = {0: 0, 4: 1}[segment["category_id"]]


class WrongKind(Segments):
    def change(self, segment: dict[str, Any]) -> None:
        segment["isthing"] = not segment["isthing"]


class ScoreInPercent(Segments):
    def change(self, segment: dict[str, Any]) -> None:
        segment["score"] *= 100


class ChangedInstances(MaskWiseMerging):
    """Changes the instances, by `change`."""

    def instances(self, *args: Any, **kwargs: Any) -> Any:
        instances = super().instances(*args, **kwargs)
        return self.change(instances)

    def change(self, instances: Any) -> Any:
        raise NotImplementedError


class NoScores(ChangedInstances):
    def change(self, instances: Any) -> Any:
        instances.remove("scores")
        return instances


class HighScores(ChangedInstances):
    def change(self, instances: Any) -> Any:
        instances.scores = instances.scores + 1
        return instances


class WorstFirst(ChangedInstances):
    def change(self, instances: Any) -> Any:
        return instances[torch.arange(len(instances)).flip(0)]


class FloatMasks(ChangedInstances):
    def change(self, instances: Any) -> Any:
        instances.pred_masks = instances.pred_masks.float()
        return instances


class SmallMasks(ChangedInstances):
    def change(self, instances: Any) -> Any:
        instances.pred_masks = instances.pred_masks[:, ::2, ::2]
        return instances


class StuffClass(ChangedInstances):
    def change(self, instances: Any) -> Any:
        instances.pred_classes = instances.pred_classes * 0 + 5
        return instances


class IndexForClass(ChangedInstances):
    def change(self, instances: Any) -> Any:
        instances.pred_classes = instances.pred_classes.clamp(max=1)
        return instances


class OtherBoxes(ChangedInstances):
    def change(self, instances: Any) -> Any:
        instances.pred_boxes.scale(0.5, 0.5)
        return instances


class NormalizedSize(ChangedInstances):
    def change(self, instances: Any) -> Any:
        instances.pred_boxes.scale(2.0, 2.0)
        return instances


class TwiceEach(ChangedInstances):
    def change(self, instances: Any) -> Any:
        return type(instances).cat([instances, instances]) if len(instances) else instances


class OwnInit(MaskWiseMerging):
    def __init__(self, cfg: Any):
        self.cfg = cfg


class Fails(MaskWiseMerging):
    def panoptic_rows(self, candidates: Candidates) -> Any:
        return candidates.class_scores >= candidates.class_scores.max()


BROKEN = {
    "size": (WrongSize, r"the map is \(48, 80\), torch\.int32; expected \(96, 160\), int32"),
    "ids": (IdsFromZero, r"segment ids are \[0, 1.*; expected 1, 2"),
    "unknown ids": (UnknownIds, "which no segment has; 0 means no segment"),
    "area": (WrongArea, r"segment 1 has area \d+, and \d+ pixels of the map; expected equal numbers above 0"),
    "input": (ChangesInput, "it changes its input in place: mask_scores"),
    "random": (RandomThreshold, "the map of a second call differs"),
    "padding": (SeesPadding, "the map depends on mask scores in padding"),
    "explain": (ExplainsNothing, r"`explain` calls 0 candidates kept; `panoptic_seg` has \d"),
    "no category": (NoCategory, r"a segment has id \(int\), isthing.*; expected id \(int\), category_id \(int\)"),
    "no isthing": (NoKind, r"a segment has id \(int\), category_id \(int\), score"),
    "unknown category": (UnknownCategory, r"segment 1 has the \w+ class 10\d; expected one of \["),
    "index": (IndexForId, "has the thing class 1, but no candidate of this class has a mask in its pixels"),
    "kind": (WrongKind, r"segment 1 has the \w+ class \d; expected one of \["),
    "percent": (ScoreInPercent, r"segment 1 has score \d+.*; expected a confidence in \[0, 1\]"),
    "no scores": (NoScores, "instances lack scores"),
    "scores": (HighScores, r"instance 0 has score 1\.\d+; expected a confidence in \[0, 1\]"),
    "order": (WorstFirst, "instances are not sorted by score, best first"),
    "float masks": (FloatMasks, r"pred_masks has dtype torch\.float32; expected torch\.bool"),
    "small masks": (SmallMasks, r"pred_masks has shape \(3, 48, 80\); expected \(3, 96, 160\)"),
    "stuff class": (StuffClass, r"instance 0 has the thing class 5; expected one of \[0, 1, 4\]"),
    "class index": (IndexForClass, "instance . has the thing class 1, but no candidate"),
    "boxes": (OtherBoxes, "expected the tight boxes of the masks"),
    "box units": (NormalizedSize, "expected x0, y0, x1, y1 in pixels of the 160 x 96 output"),
    "number": (TwiceEach, "6 instances; expected at most 3"),
    "attributes": (OwnInit, r"its attribute `things` is None; psf reads it: call super\(\)\.__init__"),
    "exception": (Fails, "`results` fails for 0 candidates: RuntimeError"),
}


@pytest.mark.parametrize(("post_processor", "message"), BROKEN.values(), ids=BROKEN)
def test_broken(post_processor: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_post_processor(post_processor)


def test_a_lambda_as_attribute() -> None:
    def build(cfg: Any) -> MaskWiseMerging:
        processor = MaskWiseMerging(cfg)
        processor.function = lambda x: x  # type: ignore[attr-defined]
        return processor

    check_post_processor(build)


def test_another_class() -> None:
    with pytest.raises(AssertionError, match=r"expected a subclass of psf\.inference\.PostProcessor"):
        check_post_processor(lambda cfg: object())
