"""Mask-wise merging under the released recipe's keys, against the released code's own results."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from psf.classes import PanopticClasses
from psf.config import add_psf_config
from psf.inference import Frame, per_candidate, score_masks
from psf.post_processing import MaskWiseMerging, build_post_processor, panoptic_result
from psf.predictions import Candidates
from tests.reference_numbers import load_reference

PROBLEMS = ("random", "none_survives", "all_overlap", "equal_scores", "empty_mask")
# COCO's ids of the released model's classes: things, then stuff, each as COCO orders them.
IDS = {kind: tuple(c["id"] for c in COCO_CATEGORIES if c["isthing"] == kind) for kind in (1, 0)}
CLASSES = PanopticClasses(thing_ids=IDS[1], stuff_ids=IDS[0])
Problem = tuple[str, dict[str, np.ndarray], ModuleType]


@pytest.fixture(params=PROBLEMS)
def problem(request: pytest.FixtureRequest, shared: Path) -> Problem:
    return request.param, *load_reference(shared, "ops_merge.npz")


@pytest.fixture
def processor() -> MaskWiseMerging:
    cfg = get_cfg()
    add_psf_config(cfg)
    cfg.MODEL.PSF.POST_PROCESSOR.EXTRA_PIXELS = 1.0
    processor = build_post_processor(cfg)
    assert isinstance(processor, MaskWiseMerging)
    return processor


def inputs(name: str, numbers: dict[str, np.ndarray]) -> tuple[Candidates, Frame]:
    masks, scores, labels = (torch.from_numpy(numbers[f"{name}_in_{x}"]) for x in ("masks", "scores", "labels"))
    num_stuff = len(scores) - len(labels)
    is_thing = torch.tensor([True] * len(labels) + [False] * num_stuff)
    candidates = Candidates(scores, torch.cat((labels, torch.arange(num_stuff))), is_thing, masks, None)
    size = tuple(masks.shape[1:])
    return candidates, Frame(size, size, tuple(numbers[f"{name}_out_size"].tolist()))


def test_final_scores(problem, processor):
    name, numbers, load = problem
    candidates, frame = inputs(name, numbers)
    thresholds = per_candidate(candidates.is_thing, processor.things, processor.stuff)
    scored = score_masks(candidates, frame, thresholds, mask_threshold=0.5, extra_pixels=1.0)
    assert load.compare(f"{name}_final_scores", scored.confidence.numpy(), numbers)[0] < 1e-6


def test_maps(problem, processor):
    name, numbers, _ = problem
    candidates, frame = inputs(name, numbers)
    segment_map, infos = panoptic_result(processor.panoptic(candidates, frame), candidates, CLASSES)
    category, instance = np.zeros(frame.output_size, int), np.zeros(frame.output_size, int)
    num_instances = 0
    for info in infos:
        own = segment_map.numpy() == info["id"]
        category[own] = info["category_id"]
        if info["isthing"]:
            num_instances += 1
            instance[own] = num_instances
    assert np.array_equal(category, numbers[f"{name}_category_stable"])
    assert np.array_equal(instance, numbers[f"{name}_instance_stable"])
    assert bool(infos) == (name != "none_survives")


def test_instances(problem, processor):
    name, numbers, load = problem
    candidates, frame = inputs(name, numbers)
    instances = processor.instances(candidates, CLASSES, frame)
    expected = numbers[f"{name}_inst_scores"]
    found = (expected > 0).sum()  # the others have an empty mask
    assert len(instances) == found
    np.testing.assert_allclose(instances.scores.numpy(), expected[:found], rtol=0, atol=1e-6)
    if name == "equal_scores":
        return  # their order is a tie
    labels = [IDS[1].index(category) for category in instances.pred_classes.tolist()]
    assert labels == numbers[f"{name}_inst_labels"][:found].tolist()
    masks, _ = load.stored(numbers, f"{name}_inst_masks")
    assert np.array_equal(instances.pred_masks.numpy(), masks[:found])
