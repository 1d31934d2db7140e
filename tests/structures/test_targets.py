"""Three forms of ground truth, one internal form."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Instances, PolygonMasks

from psf.structures import PanopticClasses, PanopticTargets, panoptic_targets
from tests.host_waits import count_host_waits

# Things 1, 4 and stuff 0, 2, 3 share one id space; in the separated one both count for themselves.
JOINT = PanopticClasses(thing_ids=(1, 4), stuff_ids=(0, 2, 3))
SEPARATED = PanopticClasses(thing_ids=(0, 1), stuff_ids=(1, 2, 3))
SIZE, PADDED = (12, 20), (16, 32)

# id: category id, rows, columns; painted in this order. The rest is void.
STUFF = {1: (3, (0, 6), (0, 20)), 2: (0, (6, 12), (0, 8)), 3: (3, (6, 12), (14, 20))}  # class 3 in two segments
THINGS = {4: (4, (2, 9), (3, 7)), 5: (1, (8, 11), (9, 13))}
EMPTY: dict[int, Any] = {}


def label_map(segments: dict[int, Any]) -> torch.Tensor:
    labels = torch.zeros(SIZE, dtype=torch.uint8)
    for k, (_, (top, bottom), (left, right)) in segments.items():
        labels[top:bottom, left:right] = k
    return labels


def image() -> dict[str, Any]:
    return {"image": torch.zeros(3, *SIZE, dtype=torch.uint8), "file_name": "some.png"}


def form_a(stuff: dict = STUFF, things: dict = THINGS) -> dict[str, Any]:
    segments = [
        {"id": k, "category_id": segment[0], "isthing": k in things, "iscrowd": False}
        for k, segment in {**stuff, **things}.items()
    ]
    return {**image(), "panoptic_labels": label_map({**stuff, **things}), "segments_info": segments}


def instances(labels: torch.Tensor, segments: dict[int, Any], *, wrap: bool = True) -> Instances:
    result = Instances(SIZE)
    result.gt_classes = torch.tensor([segment[0] for segment in segments.values()], dtype=torch.long)
    masks = torch.stack([labels == k for k in segments]) if segments else torch.zeros(0, *SIZE, dtype=torch.bool)
    result.gt_masks = BitMasks(masks) if wrap else masks
    return result


def form_b(stuff: dict = STUFF, things: dict = THINGS, *, wrap: bool = True) -> dict[str, Any]:
    every = {**stuff, **things}
    return {**image(), "instances": instances(label_map(every), every, wrap=wrap)}


def form_c(stuff: dict = STUFF, things: dict = THINGS) -> dict[str, Any]:
    labels = label_map({**stuff, **things})
    semantics = torch.full(SIZE, 255, dtype=torch.long)
    for k, (category, _, _) in stuff.items():
        semantics[labels == k] = category
    return {**image(), "instances": instances(labels, things), "sem_seg": semantics}


def read(x: dict[str, Any], classes: PanopticClasses = JOINT) -> PanopticTargets:
    [target] = panoptic_targets([x], classes, PADDED, "cpu")
    return target


def assert_same(one: PanopticTargets, other: PanopticTargets) -> None:
    for name in (field.name for field in dataclasses.fields(one)):
        a, b = getattr(one, name), getattr(other, name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, name


FORMS = {"a": form_a, "b": form_b, "b with plain masks": lambda *x: form_b(*x, wrap=False), "c": form_c}


class TestForms:
    @pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
    def test_by_hand(self, form):
        target = read(form())
        assert target.thing_classes.tolist() == [1, 0]  # ids 4 and 1 are the second and the first thing class
        assert target.stuff_classes.tolist() == [0, 2]  # ids 0 and 3
        assert target.image_size == SIZE
        labels = torch.zeros(PADDED, dtype=torch.uint8)
        labels[:12, :20] = label_map({**STUFF, **THINGS})
        assert torch.equal(target.thing_masks, torch.stack((labels == 4, labels == 5)))
        assert torch.equal(target.stuff_masks, torch.stack((labels == 2, (labels == 1) | (labels == 3))))
        # x0 y0 x1 y1, the last ones exclusive
        assert target.thing_boxes_xyxy_px.tolist() == [[3, 2, 7, 9], [9, 8, 13, 11]]

    @pytest.mark.parametrize("stuff", [STUFF, EMPTY], ids=["stuff", "no stuff"])
    @pytest.mark.parametrize("things", [THINGS, EMPTY], ids=["things", "no things"])
    def test_all_alike(self, stuff: dict, things: dict):
        first, *others = [read(form(stuff, things)) for form in FORMS.values()]
        for other in others:
            assert_same(first, other)
        assert first.thing_masks.shape == (len(things), *PADDED)
        assert first.thing_boxes_xyxy_px.shape == (len(things), 4)
        assert first.stuff_masks.shape == (2 if stuff else 0, *PADDED)

    def test_polygons_are_drawn(self):
        x = form_c()
        boxes = [(3, 2, 7, 9), (9, 8, 13, 11)]
        rectangles = [[np.array([x0, y0, x1, y0, x1, y1, x0, y1], dtype=float)] for x0, y0, x1, y1 in boxes]
        x["instances"].gt_masks = PolygonMasks(rectangles)
        assert_same(read(x), read(form_c()))

    def test_separated_ids(self):
        # Things have the separated ids 0 (for 1) and 1 (for 4), stuff 1 (for 0), 2 and 3.
        things = {4: (1, *THINGS[4][1:]), 5: (0, *THINGS[5][1:])}
        stuff = {k: ({0: 1, 2: 2, 3: 3}[c], rows, columns) for k, (c, rows, columns) in STUFF.items()}
        x = form_c(stuff, things)
        labels = label_map({**STUFF, **THINGS})
        x["sem_seg"][(labels == 4) | (labels == 5)] = 0  # "things"
        assert_same(read(x, SEPARATED), read(form_c()))

    def test_labels_of_another_type(self):
        x = form_a()
        for dtype in (torch.int16, torch.int32, torch.int64):
            x["panoptic_labels"] = x["panoptic_labels"].to(dtype)
            assert_same(read(x), read(form_a()))

    def test_boxes_of_the_loader_are_taken(self):
        x = form_a()
        x["segments_info"][3]["iscrowd"] = True  # the first thing
        boxes = [[0, 0, 20, 6], [0, 6, 8, 12], [14, 6, 20, 12], [3, 2, 7, 9], [9, 8, 13, 11]]
        plain = read(x)
        x["panoptic_boxes_xyxy_px"] = torch.tensor(boxes, dtype=torch.int32)
        assert_same(read(x), plain)
        x["panoptic_boxes_xyxy_px"][4] = torch.tensor([1, 2, 3, 4])
        assert read(x).thing_boxes_xyxy_px.tolist() == [[1, 2, 3, 4]]

    def test_no_instances_at_all(self):
        x = form_c(things={})
        x["instances"].remove("gt_masks")  # as Detectron2's mapper leaves them
        assert_same(read(x), read(form_a(things={})))
        del x["instances"]
        assert_same(read(x), read(form_a(things={})))


class TestLeftOut:
    def test_crowds(self):
        x = form_a()
        x["segments_info"][3]["iscrowd"] = True
        target = read(x)
        assert target.thing_classes.tolist() == [0]
        assert not target.thing_masks[:, 2:9, 3:7].any() and not target.stuff_masks[:, 2:9, 3:7].any()

    def test_void_is_in_no_mask(self):
        target = read(form_a())
        void = label_map({**STUFF, **THINGS}) == 0
        assert void.any()
        assert not target.thing_masks[:, :12, :20][:, void].any()
        assert not target.stuff_masks[:, :12, :20][:, void].any()

    def test_padding_is_in_no_mask(self):
        target = read(form_a())
        masks = torch.cat((target.thing_masks, target.stuff_masks))
        assert not masks[:, 12:].any() and not masks[:, :, 20:].any()

    @pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
    def test_segments_without_a_pixel(self, form):
        hidden = {**THINGS, 6: (1, (8, 11), (9, 13))}  # lies over segment 5
        assert read(form(STUFF, hidden)).thing_classes.tolist() == [1, 0]

    def test_all_void(self):
        target = read({**image(), "panoptic_labels": torch.zeros(SIZE, dtype=torch.uint8), "segments_info": []})
        assert len(target.thing_classes) == len(target.stuff_classes) == 0

    @pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
    def test_stuff_is_void_for_a_model_of_things(self, form):
        target, with_stuff = (read(form(), JOINT._replace(stuff_ids=ids)) for ids in ((), JOINT.stuff_ids))
        assert len(target.stuff_classes) == 0 and target.stuff_masks.shape == (0, *PADDED)
        assert torch.equal(target.thing_classes, with_stuff.thing_classes)
        assert torch.equal(target.thing_masks, with_stuff.thing_masks)


class TestOnTheDevice:
    """The host reads which segments have pixels, once for the batch, unless the loader has computed boxes."""

    @pytest.mark.parametrize("form", [form_a, form_c], ids=["a", "c"])
    def test_one_wait_for_the_batch(self, form):
        inputs = [form(), form(), form(things={})]
        with count_host_waits() as waits:
            targets = panoptic_targets(inputs, JOINT, PADDED, "cpu")
        # Ids of instances are on the host: `tolist` reads no device.
        reads = {line: number for line, number in waits.by_line.items() if not line.endswith("tolist")}
        assert sum(reads.values()) == 1, str(waits)
        for target, x in zip(targets, inputs, strict=True):
            assert_same(target, read(x))

    def test_derived_values_are_computed_once(self):
        target = read(form_a())
        for name in ("image_scale", "thing_boxes_cxcywh_norm", "thing_mass_centers_norm"):
            assert getattr(target, name) is getattr(target, name)


class TestErrors:
    def test_an_id_that_the_map_cannot_hold(self):
        x = form_a()
        x["segments_info"][0]["id"] = 256
        with pytest.raises(ValueError, match=r"the id 256, but `panoptic_labels` is of torch.uint8 and ends at 255"):
            read(x)

    @pytest.mark.parametrize(
        ("form", "kind"), [(form_a, "thing"), (form_c, "thing"), (form_b, "stuff")], ids=["a", "c", "b"]
    )
    def test_unknown_thing_id(self, form, kind: str):
        things = {**THINGS, 6: (9, (0, 2), (0, 2))}
        with pytest.raises(ValueError, match=rf"{kind} category ids \[9\], the model's {kind} classes"):
            read(form(STUFF, things))

    def test_unknown_stuff_id(self):
        with pytest.raises(ValueError, match=r"stuff category ids \[4\], the model's stuff classes are \[0, 2, 3\]"):
            read(form_a({1: (4, (0, 6), (0, 20))}))

    def test_things_for_a_model_of_stuff(self):
        with pytest.raises(ValueError, match=r"thing category ids \[1, 4\], the model's thing classes are \[\]"):
            read(form_a(), PanopticClasses((), (0, 2, 3)))

    def test_no_ground_truth(self):
        with pytest.raises(
            ValueError, match=r"some.png: no ground truth.*found \['file_name', 'image'\].*DATASET_MAPPER_NAME"
        ):
            read(image())

    def test_joint_instances_with_separated_ids(self):
        with pytest.raises(ValueError, match="overlap thing ids: add `sem_seg`"):
            read(form_b(), SEPARATED)

    def test_things_without_masks(self):
        x = form_c()
        x["instances"].remove("gt_masks")
        with pytest.raises(ValueError, match=r"2 `instances` without `gt_masks`.*MODEL\.MASK_ON"):
            read(x)

    @pytest.mark.parametrize("form", [form_a, form_b], ids=["a", "b"])
    def test_ground_truth_of_another_size(self, form):
        x = form()
        x["image"] = torch.zeros(3, 10, 20, dtype=torch.uint8)
        with pytest.raises(ValueError, match=r"some.png has 10 x 20 pixels .*, its ground truth 12 x 20"):
            read(x)
