"""The configured post-processors and what they hand to Detectron2."""

from __future__ import annotations

import json

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from hypothesis import given, settings
from hypothesis import strategies as st

from psf.config import add_psf_config
from psf.inference import (
    ClassTimesMask,
    ImageGeometry,
    InstanceSettings,
    MaskWiseMerging,
    MergingThresholds,
    PixelArgmax,
    PostProcessor,
    build_post_processor,
    mask_wise_merging,
    panoptic_result,
    per_candidate,
    score_masks,
    semantic_classes,
    semantic_result,
)
from psf.structures import Candidates, PanopticClasses, PanopticSegmentation, Segment
from tests.candidates import make_candidates, random_candidates, same_size

THINGS, STUFF = MergingThresholds(1.0, 2.0, 0.25, 0.6), MergingThresholds(1.0, 2.0, 0.25, 0.8)
JOINT = PanopticClasses(thing_ids=(1, 4), stuff_ids=(0, 2, 3))
SEPARATED = PanopticClasses(thing_ids=(0, 1), stuff_ids=(1, 2, 3))  # stuff 0 is "things"
KINDS = [MaskWiseMerging, PixelArgmax, ClassTimesMask]


def build(
    kind: type[PostProcessor] = MaskWiseMerging,
    *,
    boxes: str = "mask",
    score_thresh: float = 0.0,
    max_per_image: int = 100,
    nms_thresh: float = 1.0,
    extra_pixels: float = 0.0,
) -> PostProcessor:
    return kind(
        things=THINGS,
        stuff=STUFF,
        mask_threshold=0.5,
        extra_pixels=extra_pixels,
        instance=InstanceSettings(boxes, score_thresh, max_per_image, nms_thresh),
    )


def scene() -> Candidates:
    """Two things and two stuff masks on 4x5 pixels; the second thing has the better mask, stuff 0 is everywhere."""
    masks = torch.zeros(4, 4, 5)
    masks[0, 1:3, 0:2] = 0.6
    masks[1, 0:2, 3:5] = 1.0
    masks[1, 3, 4] = 0.5  # not above the threshold
    masks[2] = 0.8
    masks[3, 3] = 0.55
    return make_candidates([0.9, 0.8, 0.7, 0.9], masks, things=[True, True, False, False], classes=[1, 0, 0, 2])


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_changes_no_bit(kind: type[PostProcessor]):
    """Masks, areas, scores, boxes and the scores of classes; masks are resized twice, as those of a padded image."""
    generator = torch.Generator().manual_seed(0)
    candidates = make_candidates(
        torch.rand(8, generator=generator).tolist(),
        torch.rand(8, 12, 10, generator=generator),
        things=[True] * 5 + [False] * 3,
        classes=[0, 1, 0, 1, 0, 0, 1, 2],
    )
    geometry = ImageGeometry((48, 40), (45, 37), (70, 61))

    def run() -> list[torch.Tensor]:
        found = build(kind).results(candidates, JOINT, geometry, panoptic=True, instance=True)
        panoptic_seg, segments_info = found["panoptic_seg"]
        instances = found["instances"]
        assert segments_info and len(instances)
        numbers = torch.tensor([(x["id"], x["category_id"], x["score"], x["area"]) for x in segments_info]).double()
        boxes = instances.pred_boxes.tensor
        semantic = semantic_result(candidates, JOINT, geometry), semantic_classes(candidates, JOINT, geometry)
        return [panoptic_seg, numbers, instances.pred_masks, instances.scores, boxes, *semantic]

    expected = run()
    with torch.autocast("cpu", torch.bfloat16):
        found = run()
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == y.dtype and torch.equal(x, y)


class TestInstances:
    def test_by_hand(self):
        instances = build().instances(scene(), JOINT, same_size(4, 5))
        # Confidences 0.8 * 1 and 0.9 * 0.36: the second comes first.
        assert instances.scores.tolist() == pytest.approx([0.8, 0.324])
        assert instances.pred_classes.tolist() == [1, 4] and instances.pred_classes.dtype == torch.int64
        assert instances.pred_boxes.tensor.tolist() == [[3, 0, 5, 2], [0, 1, 2, 3]]  # x1 and y1 exclusive
        assert instances.pred_masks.dtype == torch.bool and instances.pred_masks.sum((1, 2)).tolist() == [4, 4]
        assert instances.pred_masks[0, :2, 3:].all() and instances.image_size == (4, 5)

    def test_score_threshold(self):
        for threshold, count in ((0.3, 2), (0.33, 1), (0.8, 1), (0.81, 0)):
            found = build(score_thresh=threshold).instances(scene(), JOINT, same_size(4, 5))
            assert len(found) == count

    def test_score_threshold_is_for_the_mean_of_the_mask(self):
        candidates = make_candidates([1.0], [[[1.0, 0.6, 0.6, 0.6]]])  # confidence 0.7^2, though one pixel is sure
        for threshold, count in ((0.48, 1), (0.5, 0)):
            assert len(build(score_thresh=threshold).instances(candidates, JOINT, same_size(1, 4))) == count

    def test_the_most_confident_are_kept(self):
        # The class of the first is surer, its mask is not: confidences 0.324 and 0.8.
        (kept,) = build(max_per_image=1).instances(scene(), JOINT, same_size(4, 5)).scores.tolist()
        assert kept == pytest.approx(0.8)
        assert len(build(max_per_image=0).instances(scene(), JOINT, same_size(4, 5))) == 0

    def test_of_two_that_are_much_the_same_the_lesser_is_left_out(self):
        # Confidences 0.5, 0.9 and 0.8; the IoU of the first two masks is 4 / 5; the third is of another class.
        masks = [[[1.0, 1.0, 1.0, 1.0, 1.0]], [[1.0, 1.0, 1.0, 1.0, 0.0]], [[1.0] * 5]]
        candidates = make_candidates([0.5, 0.9, 0.8], masks, classes=[0, 0, 1])
        for threshold, scores in ((0.79, [0.9, 0.8]), (0.8, [0.9, 0.8, 0.5]), (1.0, [0.9, 0.8, 0.5])):
            found = build(nms_thresh=threshold).instances(candidates, JOINT, same_size(1, 5))
            assert found.scores.tolist() == pytest.approx(scores)

    def test_empty_masks_are_left_out(self):
        candidates = make_candidates([0.9, 0.9], [[[0.5, 0.2]], [[0.6, 0.0]]])
        instances = build().instances(candidates, JOINT, same_size(1, 2))
        assert instances.pred_boxes.tensor.tolist() == [[0, 0, 1, 1]]

    def test_boxes_of_the_location_decoder(self):
        boxes = torch.tensor([[0.5, 0.5, 0.2, 0.5], [0.9, 0.25, 0.6, 0.5], [0.0] * 4, [0.0] * 4])
        candidates = scene()._replace(boxes_cxcywh_norm=boxes)
        instances = build(boxes="location_decoder").instances(candidates, JOINT, same_size(4, 5))
        # In shares of the image, cut at its border, times width 5 and height 4: 0.6..1 of 5, 0..0.5 of 4.
        expected = torch.tensor([[3.0, 0.0, 5.0, 2.0], [2.0, 1.0, 3.0, 3.0]])
        torch.testing.assert_close(instances.pred_boxes.tensor, expected)

    @pytest.mark.parametrize("boxes", ["mask", "location_decoder"])
    def test_no_things(self, boxes):
        # A model without thing classes has no boxes either.
        stuff = scene().select(torch.tensor([2, 3]))
        classes = PanopticClasses(thing_ids=(), stuff_ids=(0, 1, 2))
        instances = build(boxes=boxes).instances(stuff, classes, same_size(4, 5))
        assert len(instances) == 0 and instances.pred_masks.shape == (0, 4, 5)
        assert instances.pred_boxes.tensor.shape == (0, 4) and instances.scores.shape == (0,)

    def test_at_the_output_size(self):
        geometry = ImageGeometry((32, 40), (32, 40), (8, 10))
        instances = build().instances(scene(), JOINT, geometry)
        assert instances.pred_masks.shape == (2, 8, 10) and instances.image_size == (8, 10)
        assert instances.pred_boxes.tensor[0].tolist() == [6, 0, 10, 4]

    @given(candidates=random_candidates(max_count=5), max_per_image=st.integers(0, 6))
    @settings(max_examples=50, deadline=None)
    def test_sorted_and_boxes_tight(self, candidates, max_per_image):
        geometry = ImageGeometry((24, 32), (20, 25), (10, 13))
        instances = build(max_per_image=max_per_image).instances(candidates, JOINT, geometry)
        assert len(instances) <= min(max_per_image, int(candidates.is_thing.sum()))
        assert instances.scores.tolist() == sorted(instances.scores.tolist(), reverse=True)
        assert set(instances.pred_classes.tolist()) <= {1, 4}
        for mask, box in zip(instances.pred_masks, instances.pred_boxes.tensor.int().tolist(), strict=True):
            x0, y0, x1, y1 = box
            assert mask[y0:y1, x0:x1].sum() == mask.sum() > 0  # nothing outside
            inner = mask[y0:y1, x0:x1]
            assert inner[0].any() and inner[-1].any() and inner[:, 0].any() and inner[:, -1].any()


class TestPanoptic:
    def test_merging_by_hand(self):
        segmentation = build().panoptic(scene(), same_size(4, 5))
        # Confidences: thing 1 0.8, stuff 0 0.7 * 0.64 = 0.448, thing 0 0.324, stuff 2 0.9 * 0.3025 = 0.272.
        # Stuff 0 keeps 16 of 20 pixels, 0.8; the other two find theirs taken.
        assert segmentation.panoptic_seg.tolist() == [[2, 2, 2, 1, 1], [2, 2, 2, 1, 1], [2] * 5, [2] * 5]
        assert [(s.candidate, s.area) for s in segmentation.segments] == [(1, 4), (2, 16)]

    def test_each_kind_has_its_t_keep(self):
        # Two masks lose 3 of 10 pixels: a thing keeps enough with 0.7, stuff does not.
        masks = torch.zeros(2, 1, 10)
        masks[0, :, :3], masks[1] = 1.0, 0.9
        for is_thing, count in ((True, 2), (False, 1)):
            candidates = make_candidates([0.9, 0.9], masks, things=[True, is_thing])
            assert len(build().panoptic(candidates, same_size(1, 10)).segments) == count

    @given(candidates=random_candidates(highest=1.5), extra_pixels=st.sampled_from([0.0, 1.0]))
    @settings(max_examples=60, deadline=None)
    def test_ruling_out_hopeless_masks_changes_nothing(self, candidates, extra_pixels):
        geometry = ImageGeometry((24, 32), (20, 25), (10, 13))
        thresholds = per_candidate(candidates.is_thing, THINGS, STUFF)
        scored = score_masks(candidates, geometry, thresholds, mask_threshold=0.5, extra_pixels=extra_pixels)
        whole = mask_wise_merging(scored.confidence, scored.masks, scored.area, thresholds.t_cnf, thresholds.t_keep)
        ours = build(extra_pixels=extra_pixels).panoptic(candidates, geometry)
        assert torch.equal(ours.panoptic_seg, whole.panoptic_seg) and ours.segments == whole.segments

    def test_exactly_t_cnf_is_enough(self):
        for score, count in ((0.25, 1), (0.2499, 0)):
            candidates = make_candidates([score], torch.ones(1, 2, 2))
            assert len(build().panoptic(candidates, same_size(2, 2)).segments) == count

    @pytest.mark.parametrize("kind", KINDS)
    def test_candidates_are_counted_among_all(self, kind):
        # The first is ruled out; the segment still names its candidate by its place in the whole list.
        candidates = make_candidates([0.1, 0.9], torch.ones(2, 1, 2), things=[True, False], classes=[0, 1])
        (segment,) = build(kind).panoptic(candidates, same_size(1, 2)).segments
        assert segment == Segment(id=1, candidate=1, score=pytest.approx(0.9), area=2)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("count, size", [(0, (3, 4)), (2, (1, 1)), (3, (1, 70))])
    def test_nothing_and_tiny_images(self, kind, count, size):
        for value in (0.0, 1.0):
            candidates = make_candidates([0.1] * count, torch.full((count, 1, 1), value))
            geometry = ImageGeometry((64, 96), size, size)
            segmentation = build(kind).panoptic(candidates, geometry)
            assert segmentation.segments == [] and not segmentation.panoptic_seg.any()
            assert segmentation.panoptic_seg.shape == size
            _, infos = panoptic_result(segmentation, candidates, JOINT)
            assert infos == []
            assert semantic_result(candidates, JOINT, geometry).shape == (5, *size)
            assert len(build(kind).instances(candidates, JOINT, geometry)) == (count if value else 0)


class TestResults:
    def test_panoptic_in_plain_numbers(self):
        candidates = scene()
        segmentation = PanopticSegmentation(
            torch.tensor([[1, 2, 3]], dtype=torch.int32), [Segment(1, 3, 0.5, 1), Segment(2, 0, 0.4, 1)]
        )
        panoptic_seg, infos = panoptic_result(segmentation, candidates, JOINT)
        assert panoptic_seg is segmentation.panoptic_seg
        assert infos == [
            {"id": 1, "category_id": 3, "isthing": False, "score": 0.5, "area": 1},  # stuff 2
            {"id": 2, "category_id": 4, "isthing": True, "score": 0.4, "area": 1},  # thing 1
        ]

    @pytest.mark.parametrize("kind", KINDS)
    def test_what_is_merged_is_json(self, kind):
        _, infos = panoptic_result(build(kind).panoptic(scene(), same_size(4, 5)), scene(), JOINT)
        assert infos and json.loads(json.dumps(infos)) == infos
        assert [type(x) for x in infos[0].values()] == [int, int, bool, float, int]

    def test_ids_of_their_own(self):
        _, infos = panoptic_result(build().panoptic(scene(), same_size(4, 5)), scene(), SEPARATED)
        assert [(x["category_id"], x["isthing"]) for x in infos] == [(0, True), (1, False)]

    def test_semantic_channels(self):
        best = semantic_result(scene(), JOINT, same_size(4, 5))
        assert best.shape == (5, 4, 5) and best.dtype == torch.float32
        # Thing 0 is class 1, thing 1 class 4, stuff 0 class 0, stuff 2 class 3; nothing is class 2.
        assert best[:, 0, 4].tolist() == pytest.approx([0.56, 0.8, 0, 0, 0])
        assert best[:, 3, 0].tolist() == pytest.approx([0.56, 0, 0, 0.495, 0])
        assert best[:, 1, 0].tolist() == pytest.approx([0.56, 0, 0, 0, 0.54])

    def test_semantic_channels_with_one_for_all_things(self):
        best = semantic_result(scene(), SEPARATED, same_size(4, 5))
        assert best.shape == (4, 4, 5)
        assert best[:, 0, 4].tolist() == pytest.approx([0.8, 0.56, 0, 0])
        assert best[:, 1, 0].tolist() == pytest.approx([0.54, 0.56, 0, 0])


class TestKeys:
    @pytest.fixture
    def cfg(self) -> CfgNode:
        cfg = get_cfg()
        add_psf_config(cfg)
        return cfg

    def test_the_paper_recipe(self, cfg):
        processor = build_post_processor(cfg)
        assert type(processor) is MaskWiseMerging
        assert (processor.things, processor.stuff) == (THINGS, STUFF)
        assert (processor.mask_threshold, processor.extra_pixels) == (0.5, 0.0)
        assert processor.instance == InstanceSettings("mask", 0.0, 100, 1.0)

    @pytest.mark.parametrize("kind", KINDS)
    def test_by_name(self, cfg, kind):
        cfg.MODEL.PSF.POST_PROCESSOR.NAME = kind.__name__
        assert type(build_post_processor(cfg)) is kind

    def test_every_number_arrives(self, cfg):
        node = cfg.MODEL.PSF.POST_PROCESSOR
        node.MASK_THRESHOLD, node.EXTRA_PIXELS = 0.4, 1.0
        node.THINGS.ALPHA, node.THINGS.BETA, node.THINGS.T_CNF, node.THINGS.T_KEEP = 0.1, 0.2, 0.3, 0.4
        node.STUFF.ALPHA, node.STUFF.BETA, node.STUFF.T_CNF, node.STUFF.T_KEEP = 0.5, 0.6, 0.7, 0.8
        instance = cfg.MODEL.PSF.TEST.INSTANCE
        instance.BOXES, instance.SCORE_THRESH, cfg.TEST.DETECTIONS_PER_IMAGE = "location_decoder", 0.9, 7
        instance.NMS_THRESH = 0.6
        processor = build_post_processor(cfg)
        assert processor.things == (0.1, 0.2, 0.3, 0.4) and processor.stuff == (0.5, 0.6, 0.7, 0.8)
        assert (processor.mask_threshold, processor.extra_pixels) == (0.4, 1.0)
        assert processor.instance == ("location_decoder", 0.9, 7, 0.6)

    @pytest.mark.parametrize("value", [-0.1, 1.5])
    def test_no_iou(self, cfg, value):
        cfg.MODEL.PSF.TEST.INSTANCE.NMS_THRESH = value
        with pytest.raises(ValueError, match=rf"NMS_THRESH is {value}"):
            build_post_processor(cfg)

    @pytest.mark.parametrize("value", [-1, 0])
    def test_no_instances(self, cfg, value):
        cfg.TEST.DETECTIONS_PER_IMAGE = value
        with pytest.raises(ValueError, match=rf"TEST\.DETECTIONS_PER_IMAGE is {value}: expected 1 or more"):
            build_post_processor(cfg)

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("SCORE_THRESH", 2.0, r'SCORE_THRESH is 2\.0: expected a confidence from 0 to 1.*"sigmoid"'),
            ("SCORE_THRESH", -0.1, r"SCORE_THRESH is -0\.1: expected a confidence from 0 to 1"),
            ("SCORE_THRESH", float("nan"), "SCORE_THRESH is nan: expected a confidence"),
        ],
    )
    def test_instances_that_there_cannot_be(self, cfg, key, value, message):
        cfg.MODEL.PSF.TEST.INSTANCE[key] = value
        with pytest.raises(ValueError, match=rf"MODEL\.PSF\.TEST\.INSTANCE\.{message}"):
            build_post_processor(cfg)

    def test_confidence_of_relu_masks_has_no_upper_end(self, cfg):
        cfg.MODEL.PSF.MASK_DECODER.MASK_ACTIVATION = "relu"
        cfg.MODEL.PSF.TEST.INSTANCE.SCORE_THRESH = 2.0
        assert build_post_processor(cfg).instance.score_thresh == 2.0
        sure = make_candidates([1.0], [[[3.0, 3.0]]])  # 1 * 3^2
        assert build(score_thresh=2.0).instances(sure, JOINT, same_size(1, 2)).scores.tolist() == pytest.approx([9.0])
        cfg.MODEL.PSF.TEST.INSTANCE.SCORE_THRESH = -0.1
        with pytest.raises(ValueError, match=r'SCORE_THRESH is -0\.1: expected 0 or more.*"relu"'):
            build_post_processor(cfg)


class TestExplain:
    """The scene of the top of this file, and a thing without a mask."""

    def scene(self) -> Candidates:
        plain = scene()
        more = make_candidates([0.9], torch.full((1, 4, 5), 0.25), things=[True])
        return Candidates(*(torch.cat(pair) for pair in zip(plain[:4], more[:4], strict=True)), None)

    def explain(self, processor: PostProcessor) -> dict[str, list[str]]:
        found = processor.explain(self.scene(), same_size(4, 5), panoptic=True, instance=True)
        return {key: one.reasons for key, one in found.items()}

    @given(random_candidates(), st.sampled_from(KINDS))
    @settings(max_examples=50, deadline=None)
    def test_what_is_kept_is_what_the_results_have(self, candidates: Candidates, kind: type[PostProcessor]):
        processor = build(kind, score_thresh=0.1, max_per_image=2, nms_thresh=0.5)
        geometry = ImageGeometry((8, 8), (8, 8), (5, 7))
        found = processor.explain(candidates, geometry, panoptic=True, instance=True)
        kept = {i for i, reason in enumerate(found["panoptic_seg"].reasons) if reason == "kept"}
        assert kept == {segment.candidate for segment in processor.panoptic(candidates, geometry).segments}
        instances = processor.instances(candidates, SEPARATED, geometry)
        assert found["instances"].reasons.count("kept") == len(instances)
        assert len(found["instances"].reasons) == int(candidates.is_thing.sum())

    def test_merging(self):
        processor = build()
        found = self.explain(processor)
        segments = processor.panoptic(self.scene(), same_size(4, 5)).segments
        for i, reason in enumerate(found["panoptic_seg"]):
            assert (reason == "kept") == (i in {segment.candidate for segment in segments})
        assert found["panoptic_seg"][4] == found["instances"][2] == "empty_mask"

    def test_merging_names_both_thresholds(self):
        """By hand: confidence p * mean^2; two equal masks, of which the second keeps nothing."""
        masks = torch.ones(3, 2, 2)
        candidates = make_candidates([0.9, 0.8, 0.2], masks)
        found = build().explain(candidates, same_size(2, 2), panoptic=True, instance=False)
        assert list(found) == ["panoptic_seg"]
        assert found["panoptic_seg"].reasons == ["kept", "T_KEEP", "T_CNF"]
        assert found["panoptic_seg"].confidence.tolist() == pytest.approx([0.9, 0.8, 0.2])

    def test_argmax_judges_classes(self):
        masks = torch.ones(3, 2, 2)
        masks[1:] *= 0.3
        candidates = make_candidates([0.9, 0.8, 0.2], masks)
        for kind, reason in ((PixelArgmax, "higher_scores"), (ClassTimesMask, "empty_mask")):
            found = build(kind).explain(candidates, same_size(2, 2), panoptic=True, instance=False)["panoptic_seg"]
            assert found.reasons == ["kept", reason, "T_CNF" if kind is PixelArgmax else "empty_mask"]
            assert found.confidence.tolist() == pytest.approx([0.9, 0.8, 0.2])

    def test_instances(self):
        masks = torch.ones(4, 2, 2)
        masks[3, 0] = 0
        candidates = make_candidates([0.9, 0.8, 0.2, 0.7], masks)
        settings_of = {"score_thresh": 0.5, "nms_thresh": 0.9}
        found = build(**settings_of).explain(candidates, same_size(2, 2), panoptic=False, instance=True)["instances"]
        assert found.reasons == ["kept", "DETECTIONS_PER_IMAGE or NMS_THRESH", "SCORE_THRESH", "kept"]


@given(
    candidates=random_candidates(max_count=8),
    kind=st.sampled_from(KINDS),
    nms_thresh=st.sampled_from([1.0, 0.5, 0.0]),
    boxes=st.sampled_from(["mask", "location_decoder"]),
)
@settings(max_examples=150, deadline=None)
def test_painted_on_the_device_or_with_numpy(candidates, kind, nms_thresh, boxes):
    if boxes == "location_decoder":
        candidates = candidates._replace(boxes_cxcywh_norm=torch.rand(len(candidates.is_thing), 4))
    processor = build(kind, boxes=boxes, nms_thresh=nms_thresh)
    args = (candidates, JOINT, same_size(13, 17))
    expected = processor.results(*args, panoptic=True, instance=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("psf.inference.post_processor.paints_on_device", lambda masks: True)
        found = processor.results(*args, panoptic=True, instance=True)
    assert torch.equal(found["panoptic_seg"][0], expected["panoptic_seg"][0])
    assert found["panoptic_seg"][1] == expected["panoptic_seg"][1]
    for name in ("pred_masks", "scores", "pred_classes"):
        assert torch.equal(found["instances"].get(name), expected["instances"].get(name))
    assert torch.equal(found["instances"].pred_boxes.tensor, expected["instances"].pred_boxes.tensor)
