"""One set of queries for things and stuff: what they learn, and what becomes of their candidates."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from psf.inference import panoptic_result
from psf.inference.candidates import separate_stuff
from psf.inference.results import join_stuff_segments
from psf.structures import (
    PanopticClasses,
    PanopticSegmentation,
    Segment,
    all_as_things,
    panoptic_targets,
    stuff_as_things,
)
from tests.candidates import make_candidates
from tests.models import NUM_STUFF_CLASSES, NUM_THING_CLASSES, RECIPES, make_input, tiny_model, total

CLASSES = PanopticClasses(thing_ids=(1, 4), stuff_ids=(0, 2, 3))


def test_stuff_classes_come_after_thing_classes():
    assert all_as_things(CLASSES) == ((1, 4, 0, 2, 3), ())


class TestTargets:
    def test_by_hand(self):
        x = {
            "image": torch.zeros(3, 3, 4),
            # 1, 2: a stuff class in two segments; 3: a thing; 4: more stuff
            "panoptic_labels": torch.tensor([[1, 1, 0, 2], [4, 3, 3, 2], [4, 3, 3, 0]]),
            "segments_info": [
                {"id": i, "category_id": category_id, "isthing": category_id == 4, "iscrowd": False}
                for i, category_id in ((1, 2), (2, 2), (3, 4), (4, 0))
            ],
        }
        [apart] = panoptic_targets([x], CLASSES, (4, 5), "cpu")
        joint = stuff_as_things(apart, num_thing_classes=2)
        # Class id 4 is thing 1; ids 0 and 2 are stuff 0 and 1, so 2 and 3 among all classes.
        assert joint.thing_classes.tolist() == [1, 2, 3] and joint.thing_classes.dtype == torch.int64
        assert joint.thing_boxes_xyxy_px.tolist() == [[1, 1, 3, 3], [0, 1, 1, 3], [0, 0, 4, 2]]
        assert joint.thing_boxes_xyxy_px.dtype == torch.float32
        assert torch.equal(joint.thing_masks, torch.cat((apart.thing_masks, apart.stuff_masks)))
        assert joint.stuff_classes.shape == (0,) and joint.stuff_masks.shape == (0, 4, 5)
        assert joint.image_size == (3, 4)

    @pytest.mark.parametrize(("things", "stuff"), [(0, 0), (2, 0), (0, 2)])
    def test_without_a_kind(self, things: int, stuff: int):
        classes = PanopticClasses.from_counts(NUM_THING_CLASSES, NUM_STUFF_CLASSES)
        [apart] = panoptic_targets([make_input(16, 24, things=things, stuff=stuff)], classes, (16, 24), "cpu")
        joint = stuff_as_things(apart, NUM_THING_CLASSES)
        assert len(joint.thing_classes) == len(joint.thing_masks) == len(joint.thing_boxes_xyxy_px) == things + stuff
        assert joint.thing_classes[:things].lt(NUM_THING_CLASSES).all()
        assert joint.thing_classes[things:].ge(NUM_THING_CLASSES).all()


def test_candidates_are_told_apart_by_their_class():
    found = separate_stuff(make_candidates([0.5] * 5, torch.rand(5, 2, 2), classes=[4, 0, 2, 1, 2]), 2)
    assert found.is_thing.tolist() == [False, True, False, True, False]
    assert found.class_indices.tolist() == [2, 0, 0, 1, 0]


class TestJoining:
    """Candidates: stuff 1, thing 1, stuff 1, thing 1, stuff 0, stuff 1; the fourth has no segment."""

    candidates = make_candidates(
        [0.5] * 6,
        torch.zeros(6, 2, 4),
        things=[False, True, False, True, False, False],
        classes=[1, 1, 1, 1, 0, 1],
    )
    segmentation = PanopticSegmentation(
        torch.tensor([[1, 1, 2, 0], [3, 4, 5, 5]], dtype=torch.int32),
        [Segment(*x) for x in ((1, 0, 0.6, 2), (2, 1, 0.5, 1), (3, 2, 0.9, 1), (4, 4, 0.4, 1), (5, 5, 0.3, 2))],
    )

    def test_by_hand(self):
        panoptic_seg, segments = join_stuff_segments(
            self.segmentation, self.candidates.is_thing.numpy(), self.candidates.class_indices.numpy()
        )
        assert panoptic_seg.tolist() == [[1, 1, 2, 0], [1, 3, 1, 1]] and panoptic_seg.dtype == torch.int32
        # 2 + 1 + 2 pixels of stuff 1, with the best of the scores 0.6, 0.9 and 0.3
        assert segments == [Segment(1, 2, 0.9, 5), Segment(2, 1, 0.5, 1), Segment(3, 4, 0.4, 1)]

    def test_things_of_one_class_stay_apart(self):
        classes = self.candidates.class_indices.numpy()
        assert join_stuff_segments(self.segmentation, np.ones(6, dtype=bool), classes) is self.segmentation

    def test_in_detectron2s_structures(self):
        _, segments_info = panoptic_result(self.segmentation, self.candidates, CLASSES)
        assert [(x["id"], x["category_id"], x["area"]) for x in segments_info] == [(1, 2, 5), (2, 4, 1), (3, 0, 1)]


class TestModel:
    @pytest.mark.parametrize("recipe", RECIPES)
    def test_one_decoder_and_heads_for_all_classes(self, recipe: str):
        model = tiny_model({**RECIPES[recipe], "QUERIES": "joint"})
        assert model.has_joint_queries and model.stuff_classifier is None
        assert not [name for name, _ in model.named_parameters() if "stuff" in name]
        assert {head.out_features for head in model.location_decoder.class_embed} == {7}
        assert not tiny_model(RECIPES[recipe]).has_joint_queries
        assert not tiny_model({**RECIPES[recipe], "QUERIES": "joint", "NUM_STUFF_CLASSES": 0}).has_joint_queries

    def test_training_and_results_agree_about_the_classes(self):
        """One image by heart: its results carry the ids and kinds of its ground truth."""
        model = tiny_model({"QUERIES": "joint", "MASK_DECODER.NUM_THING_LAYERS": 1})
        model.classes = PanopticClasses(thing_ids=(1, 3, 5), stuff_ids=(0, 2, 4, 6))
        x = make_input(64, 64, things=1, stuff=2)
        for segment, category_id in zip(x["segments_info"], (4, 2, 3), strict=True):
            segment["category_id"] = category_id
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        model.train()
        for _ in range(80):
            loss = total(model([x]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            [result] = model([x])
        found = {(segment["category_id"], segment["isthing"]) for segment in result["panoptic_seg"][1]}
        assert found == {(4, False), (2, False), (3, True)}
        assert set(result["instances"].pred_classes.tolist()) <= {1, 3, 5}
        assert result["instances"].pred_classes[0] == 3
        assert {k for k in range(7) if result["sem_seg"][k].max() > 0.3} == {2, 3, 4}
