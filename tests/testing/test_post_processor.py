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


class NotPicklable(MaskWiseMerging):
    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.function = lambda x: x


BROKEN = {
    "size": (WrongSize, r"the map is \(48, 80\), torch\.int32; expected \(96, 160\), int32"),
    "ids": (IdsFromZero, r"segment ids are \[0, 1.*; expected 1, 2"),
    "unknown ids": (UnknownIds, "which no segment has; 0 means no segment"),
    "area": (WrongArea, r"segment 1 has area \d+, and \d+ pixels of the map; expected equal numbers above 0"),
    "input": (ChangesInput, "it changes its input in place: mask_scores"),
    "random": (RandomThreshold, "the map of a second call differs"),
    "padding": (SeesPadding, "mask scores in padding change the map"),
    "explain": (ExplainsNothing, r"`explain` calls 0 candidates kept; `panoptic_seg` has \d"),
    "pickle": (NotPicklable, r"torch\.save and torch\.load fail"),
}


@pytest.mark.parametrize(("post_processor", "message"), BROKEN.values(), ids=BROKEN)
def test_broken(post_processor: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_post_processor(post_processor)


def test_another_class() -> None:
    with pytest.raises(AssertionError, match=r"expected a subclass of psf\.inference\.PostProcessor"):
        check_post_processor(lambda cfg: object())
