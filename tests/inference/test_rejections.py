"""Why candidates are rejected, by hand."""

from __future__ import annotations

import torch

from psf.inference import explain_rejections, summarise_rejections
from tests.candidates import make_candidates


def outcomes(scores: list[float], highest: list[float], things: list[bool], **flags: list[bool]):
    masks = torch.zeros(len(scores), 2, 2)
    masks[:, 0, 1] = torch.tensor(highest)
    return explain_rejections(
        make_candidates(scores, masks, things=things),
        confidence=torch.tensor(scores) / 2,
        **{key: torch.tensor(value) for key, value in flags.items()},
        confidence_key="T_CNF",
        last_key="T_KEEP",
    )


def test_the_first_obstacle_is_named():
    found = outcomes(
        [0.9, 0.8, 0.7, 0.6],
        [0.4, 1.0, 1.0, 1.0],
        [True, True, False, True],
        has_mask=[False, True, True, True],
        is_confident=[False, False, True, True],
        is_kept=[False, False, False, True],
    )
    assert found.reasons == ["empty_mask", "T_CNF", "T_KEEP", "kept"]
    assert found.highest_mask_scores.tolist() == torch.tensor([0.4, 1.0, 1.0, 1.0]).tolist()


def test_summary_of_several_images():
    flags = {"has_mask": [True, False], "is_confident": [False, False], "is_kept": [False, False]}
    images = [
        outcomes([0.5, 0.25], [0.75, 2.0], [True, False], **flags),
        outcomes([0.125, 0.0], [0.5, 0.25], [True, True], **flags),
    ]
    things, stuff = (summarise_rejections(images, is_thing) for is_thing in (True, False))
    # Things: both of the second image and one of the first. Confidences are half of the class scores.
    assert things == (2, 3, 0.25, 0.5, 0.75, {"T_CNF": 2, "empty_mask": 1})
    assert stuff == (2, 1, 0.125, 0.25, 2.0, {"empty_mask": 1})


def test_no_candidates():
    nothing = outcomes([], [], [], has_mask=[], is_confident=[], is_kept=[])
    assert nothing.reasons == []
    assert summarise_rejections([nothing], True) == (1, 0, 0.0, 0.0, 0.0, {})
