"""What the model gives at test: shapes, types, sizes, and the same for an image alone and in a batch."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psf import PanopticSegFormer
from psf.inference import ImageGeometry, mask_nms, semantic_classes, semantic_result, semantic_scores
from psf.inference.candidates import CHUNK_PIXELS
from psf.structures import PanopticClasses
from tests.allocations import record_allocations
from tests.candidates import make_candidates, random_candidates, same_size
from tests.models import RECIPES, RELEASED, SMALL, check_result, make_input, tiny_model

ALL_KEPT = {f"POST_PROCESSOR.{kind}.{key}": 0.0 for kind in ("THINGS", "STUFF") for key in ("T_CNF", "T_KEEP")}
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {**ALL_KEPT},
    "released": {**RELEASED, **ALL_KEPT},
    "small": {**SMALL, **ALL_KEPT},
    "location decoder's boxes": {"TEST.INSTANCE.BOXES": "location_decoder", **ALL_KEPT},
    "top pairs": {"TEST.CANDIDATES": "top_pairs", **ALL_KEPT},
    "no location layers": {"LOCATION_DECODER.NUM_LAYERS": 0, **ALL_KEPT},
    "mass centre": {"LOCATION_DECODER.TARGET": "mass_center", **ALL_KEPT},
    "located things": {"MASK_DECODER.THING_POSITION": "located", **ALL_KEPT},
    "located things, released": {**RELEASED, "MASK_DECODER.THING_POSITION": "located", **ALL_KEPT},
    "argmax": {"POST_PROCESSOR.NAME": "PixelArgmax", **ALL_KEPT},
    "heuristic": {"POST_PROCESSOR.NAME": "ClassTimesMask", **ALL_KEPT},
    "joint": {"QUERIES": "joint", **ALL_KEPT},
    "joint, released": {**RELEASED, "QUERIES": "joint", **ALL_KEPT},
    "joint, argmax": {"QUERIES": "joint", "POST_PROCESSOR.NAME": "PixelArgmax", **ALL_KEPT},
    "joint, heuristic": {"QUERIES": "joint", "POST_PROCESSOR.NAME": "ClassTimesMask", **ALL_KEPT},
    "joint, stuff alone": {"QUERIES": "joint", "NUM_THING_CLASSES": 0, **ALL_KEPT},
    "things alone": {"NUM_STUFF_CLASSES": 0, **ALL_KEPT},
    "things alone, released": {**RELEASED, "NUM_STUFF_CLASSES": 0, **ALL_KEPT},
    "stuff alone": {"NUM_THING_CLASSES": 0, **ALL_KEPT},
    "nothing is sure enough": {"POST_PROCESSOR.THINGS.T_CNF": 2.0, "POST_PROCESSOR.STUFF.T_CNF": 2.0},
}


@functools.cache
def model(variant: str) -> PanopticSegFormer:
    return tiny_model(VARIANTS[variant]).eval()


@torch.no_grad()
def run(which: PanopticSegFormer, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return which(inputs)


def photo(height: int, width: int, *, seed: int = 0, out: tuple[int, int] | None = None) -> dict[str, Any]:
    """An image as the mapper gives it at test, with the size of the wanted results."""
    x = make_input(height, width, things=0, stuff=0, seed=seed)
    image = {key: x[key] for key in ("image", "file_name", "image_id")}
    return image if out is None else {**image, "height": out[0], "width": out[1]}


class TestContract:
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_batch_of_unequal_sizes(self, variant: str):
        results = run(model(variant), [photo(64, 96, out=(50, 75)), photo(50, 72, seed=1, out=(100, 144))])
        assert len(results) == 2
        check_result(results[0], model(variant), 50, 75)
        check_result(results[1], model(variant), 100, 144)
        is_empty = variant == "nothing is sure enough"
        assert all((len(result["panoptic_seg"][1]) == 0) == is_empty for result in results)
        if model(variant).classes.thing_ids:
            assert all(len(result["instances"]) for result in results)

    @pytest.mark.parametrize("variant", ["paper", "released"])
    @pytest.mark.parametrize("size", [(1, 1), (1, 90), (17, 400), (400, 17), (33, 31)], ids=str)
    def test_unusual_sizes(self, variant: str, size: tuple[int, int]):
        [result] = run(model(variant), [photo(*size)])
        check_result(result, model(variant), *size)
        both = run(model(variant), [photo(*size, out=(20, 30)), photo(40, 50, out=(1, 1))])
        check_result(both[0], model(variant), 20, 30)
        check_result(both[1], model(variant), 1, 1)

    def test_no_more_instances_than_asked_for(self):
        few = tiny_model(ALL_KEPT, TEST__DETECTIONS_PER_IMAGE=2).eval()
        [all_of_them], [best] = run(model("paper"), [photo(64, 96)]), run(few, [photo(64, 96)])
        assert len(all_of_them["instances"]) > 2 >= len(best["instances"]) > 0

    @pytest.mark.parametrize("switch", ["PANOPTIC", "INSTANCE", "SEMANTIC"])
    def test_switches(self, switch: str):
        names = {"PANOPTIC": "panoptic_seg", "INSTANCE": "instances", "SEMANTIC": "sem_seg"}
        [result] = run(tiny_model({f"TEST.{switch}_ON": False}).eval(), [photo(64, 96)])
        assert set(result) == set(names.values()) - {names[switch]}

    def test_location_head_is_not_run_where_nothing_asks_for_it(self):
        for variant, calls in (("paper", 0), ("released", 1), ("location decoder's boxes", 1), ("located things", 1)):
            counted = []
            head = model(variant).location_decoder.class_embed[-1]
            handle = head.register_forward_hook(lambda *_, counted=counted: counted.append(1))
            run(model(variant), [photo(64, 96)])
            handle.remove()
            assert len(counted) == calls, variant


def test_boxes_are_those_of_the_masks():
    [result] = run(model("paper"), [photo(64, 96)])
    for mask, box in zip(result["instances"].pred_masks, result["instances"].pred_boxes.tensor.tolist(), strict=True):
        rows, columns = mask.nonzero(as_tuple=True)
        assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize(("hidden", "expected"), [("STUFF", (4, True)), ("THINGS", (3, False))])
def test_categories_are_the_contiguous_ids_of_the_kind(hidden: str, expected: tuple[int, bool]):
    """The second thing class and the third stuff class are made sure, all others impossible."""
    sure = tiny_model({**ALL_KEPT, f"POST_PROCESSOR.{hidden}.T_CNF": 2.0}).eval()
    sure.classes = sure.classes._replace(thing_ids=(1, 4, 6), stuff_ids=(0, 2, 3, 5))
    with torch.no_grad():
        for layer in sure.thing_classifier.layers:
            layer.weight.zero_()
            layer.bias.copy_(torch.tensor([-50.0, 50.0, -50.0]))
        sure.stuff_decoder.tail_head.fuse.bias += 50.0  # all masks are full
        sure.stuff_classifier.layers[-1].register_forward_hook(
            lambda *_: torch.tensor([-50.0, -50.0, 50.0, -50.0]).view(1, 4, 1)
        )
        [result] = sure([photo(64, 96)])
    assert {(x["category_id"], x["isthing"]) for x in result["panoptic_seg"][1] if x["score"] > 0.1} == {expected}
    assert set(result["instances"].pred_classes.tolist()) == {4}
    assert [k for k in range(7) if result["sem_seg"][k].max() > 0.1] == [3, 4]


class TestBatch:
    """In float64, so that no pixel lies near enough to a threshold to change sides."""

    @pytest.mark.parametrize("recipe", RECIPES)
    def test_two_images_are_two_batches_of_one(self, recipe: str):
        exact = tiny_model({**VARIANTS[recipe], "SIZE_DIVISIBILITY": 32}).double().eval()
        inputs = [photo(60, 90, out=(45, 70)), photo(64, 70, seed=1)]  # both padded to 64 x 96
        both = run(exact, inputs)
        assert sum(len(one["panoptic_seg"][1]) for one in both) > 1
        for one, [alone] in zip(both, [run(exact, [x]) for x in inputs], strict=True):
            assert torch.equal(one["panoptic_seg"][0], alone["panoptic_seg"][0])
            for segment, same in zip(one["panoptic_seg"][1], alone["panoptic_seg"][1], strict=True):
                assert segment == {**same, "score": pytest.approx(same["score"])}
            assert torch.equal(one["instances"].pred_masks, alone["instances"].pred_masks)
            assert torch.equal(one["instances"].pred_classes, alone["instances"].pred_classes)
            torch.testing.assert_close(one["instances"].scores, alone["instances"].scores)
            torch.testing.assert_close(one["instances"].pred_boxes.tensor, alone["instances"].pred_boxes.tensor)
            torch.testing.assert_close(one["sem_seg"], alone["sem_seg"])

    @pytest.mark.parametrize("recipe", RECIPES)
    def test_thing_queries_may_be_permuted(self, recipe: str):
        permuted = tiny_model(VARIANTS[recipe]).double().eval()
        [before] = run(permuted, [photo(64, 96)])
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        if permuted.location_decoder.proposals is not None:
            pytest.skip("queries are proposals, in the order of their scores")
        for embedding in (permuted.location_decoder.query_feat, permuted.location_decoder.query_pos):
            embedding.weight.data = embedding.weight.data[order]
        [after] = run(permuted, [photo(64, 96)])
        assert torch.equal(before["panoptic_seg"][0], after["panoptic_seg"][0])
        assert torch.equal(before["instances"].pred_masks, after["instances"].pred_masks)


class TestLayer:
    """TEST_LAYER: masks and classes of layer min(k, depth) of each decoder; -1: the tail's masks."""

    def candidates(self, layer: int) -> list[torch.Tensor]:
        which = tiny_model({"TEST_LAYER": layer, "SIZE_DIVISIBILITY": 32}).eval()
        with torch.no_grad():
            [found] = which.candidates(which.preprocess([photo(64, 96)]).tensor, None)
        return [found.class_scores, found.mask_scores]

    def test_layers_differ_until_the_decoders_end(self):
        """Things have two layers, stuff three."""
        [one, two, three, four, last] = [self.candidates(layer) for layer in (1, 2, 3, 4, -1)]
        things, stuff = slice(0, 6), slice(6, 10)
        for i in range(2):
            assert not torch.allclose(one[i][things], two[i][things])
            assert not torch.allclose(two[i][stuff], three[i][stuff])
            assert torch.equal(two[i][things], three[i][things])
            assert torch.equal(three[i], four[i])
        assert torch.equal(three[0], last[0])  # the classes
        assert not torch.allclose(three[1], last[1])  # the masks

    def test_is_what_training_supervises(self):
        """Masks and classes of layer k at test are those of layer k in training."""
        which = tiny_model({"SIZE_DIVISIBILITY": 32}).train()
        seen: dict[str, Any] = {}
        for name in ("thing_decoder", "stuff_decoder", "thing_classifier", "stuff_classifier"):
            part = which.get_submodule(name)
            part.register_forward_hook(lambda module, inputs, output, name=name: seen.update({name: output}))
        with torch.no_grad():
            which([make_input(64, 96, things=2, stuff=2)])
        masks = [seen[name].mask_scores for name in ("thing_decoder", "stuff_decoder")]
        scores = [[x[0].sigmoid() for x in seen[name]] for name in ("thing_classifier", "stuff_classifier")]
        # TEST_LAYER: position of the mask and of the class among those of training, for things and for stuff
        expected = {1: (0, 0, 0, 0), 2: (1, 1, 1, 1), 3: (1, 2, 1, 2), -1: (2, 3, 1, 2)}
        for layer, (thing_mask, stuff_mask, thing_class, stuff_class) in expected.items():
            found_scores, found_masks = self.candidates(layer)
            torch.testing.assert_close(found_masks, torch.cat((masks[0][thing_mask][0], masks[1][stuff_mask][0])))
            best = scores[0][thing_class].amax(-1)
            torch.testing.assert_close(found_scores, torch.cat((best, scores[1][stuff_class][:, 0])))

    @pytest.mark.parametrize("layer", [0, -2])
    def test_no_such_layer(self, layer: int):
        with pytest.raises(ValueError, match=rf"MODEL\.PSF\.TEST_LAYER is {layer}"):
            self.candidates(layer)


@given(
    candidates=random_candidates(max_count=9),
    out=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    padding=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    chunk=st.sampled_from([1, 900, 2**20]),
    is_flat=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_classes_are_the_argmax_of_the_scores(candidates, out, padding, chunk, is_flat):
    """Also where scores are equal, and for any number of classes that are resized at a time."""
    if is_flat:
        candidates = candidates._replace(
            class_scores=torch.ones(len(candidates.is_thing)), mask_scores=candidates.mask_scores.round()
        )
    size = (24, 32)
    geometry = ImageGeometry((size[0] + padding[0], size[1] + padding[1]), size, out)
    for classes in (PanopticClasses((1, 4), (0, 2, 3)), PanopticClasses((0, 1), (1, 2, 3))):
        expected = semantic_result(candidates, classes, geometry).argmax(0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(CHUNK_PIXELS, "cpu", chunk)
            found = semantic_classes(candidates, classes, geometry)
        assert found.dtype == torch.int32 and torch.equal(found.long(), expected)


def test_classes_need_little_memory():
    """No tensor larger than 4 bytes per pixel; the scores of 60 classes take 240."""
    candidates = make_candidates([0.9] * 60, torch.rand(60, 20, 30), classes=list(range(60)))
    geometry = ImageGeometry((160, 240), (160, 240), (1000, 1500))  # more than `CHUNK_PIXELS`
    with record_allocations() as sizes:
        semantic_classes(candidates, PanopticClasses(tuple(range(60)), ()), geometry)
    assert max(sizes.bytes) <= 4 * 1000 * 1500


def test_model_returns_classes_in_place_of_scores():
    which = tiny_model(ALL_KEPT).eval()
    [scores] = run(which, [photo(64, 96, out=(50, 75))])
    which.settings = which.settings._replace(semantic_classes=True)
    [classes] = run(which, [photo(64, 96, out=(50, 75))])
    assert torch.equal(classes["sem_seg"].long(), scores["sem_seg"].argmax(0))


def test_highest_product_of_each_class():
    candidates = make_candidates([0.5, 0.9, 1.0], [[[1.0, 0.2]], [[0.5, 0.4]], [[0.3, 0.0]]])
    scores = semantic_scores(candidates, torch.tensor([2, 2, 0]), 4, same_size(1, 2))
    # Class 2: left max(0.5 * 1, 0.9 * 0.5) = 0.5, right max(0.1, 0.36); class 0: 0.3 and 0; classes 1 and 3 have none.
    expected = torch.tensor([[[0.3, 0.0]], [[0.0, 0.0]], [[0.5, 0.36]], [[0.0, 0.0]]])
    torch.testing.assert_close(scores, expected)
    assert scores.dtype == torch.float32


def test_resized_to_the_output():
    # Of 4 x 4 pixels, padded to 8 x 4. The output of twice the size would have 16 rows with the padding, and gets 8.
    candidates = make_candidates([0.5], [[[0.2], [0.6], [0.9], [0.9]]])
    scores = semantic_scores(candidates, torch.tensor([0]), 1, ImageGeometry((8, 4), (4, 4), (8, 8)))
    # A row of scores is 4 rows of output: centers at 1.5, 5.5, 9.5, and 0.4 between them is 0.1 a row.
    expected = 0.5 * torch.tensor([0.2, 0.2, 0.25, 0.35, 0.45, 0.55, 0.6375, 0.7125])
    torch.testing.assert_close(scores, expected[None, :, None].expand(1, 8, 8))


def test_no_candidates():
    candidates = make_candidates([], torch.zeros(0, 2, 3))
    scores = semantic_scores(candidates, torch.zeros(0, dtype=torch.long), 3, same_size(4, 6))
    assert torch.equal(scores, torch.zeros(3, 4, 6))


def bars(*spans: tuple[int, int], width: int = 10) -> torch.Tensor:
    """Masks of one row, from one column to before another."""
    columns = torch.arange(width)
    return torch.stack([((columns >= low) & (columns < high))[None] for low, high in spans])


def naive(masks: torch.Tensor, classes: list[int], threshold: float) -> list[int]:
    kept: list[int] = []
    for one, mask in enumerate(masks):
        ious = [
            int((mask & masks[k]).sum()) / max(int((mask | masks[k]).sum()), 1)
            for k in kept
            if classes[k] == classes[one]
        ]
        if max(ious, default=0.0) <= threshold:
            kept.append(one)
    return kept


class TestByHand:
    # IoU of the first two: 6 / 10; of the second and the third: 6 / 10; of the first and the third: 4 / 12.
    masks = bars((0, 8), (2, 10), (4, 12), width=12)

    @pytest.mark.parametrize(
        ("threshold", "kept"),
        [(0.59, [0, 2]), (0.6, [0, 1, 2]), (0.3, [0]), (0.0, [0]), (1.0, [0, 1, 2])],
    )
    def test_one_that_is_left_out_leaves_out_none(self, threshold: float, kept: list[int]):
        assert mask_nms(self.masks, torch.zeros(3, dtype=torch.long), threshold).tolist() == kept

    def test_classes_do_not_meet(self):
        assert mask_nms(self.masks, torch.tensor([0, 1, 0]), 0.5).tolist() == [0, 1, 2]
        assert mask_nms(self.masks, torch.tensor([0, 1, 1]), 0.5).tolist() == [0, 1]

    def test_equal_masks(self):
        masks = bars((1, 4), (1, 4), (1, 4))
        assert mask_nms(masks, torch.zeros(3, dtype=torch.long), 0.99).tolist() == [0]
        assert mask_nms(masks, torch.zeros(3, dtype=torch.long), 1.0).tolist() == [0, 1, 2]

    def test_boxes_that_meet_where_masks_do_not(self):
        corner = torch.zeros(2, 4, 4, dtype=torch.bool)
        corner[0, 0, :], corner[0, :, 0] = True, True
        corner[1, 1:, 1:] = True
        assert mask_nms(corner, torch.zeros(2, dtype=torch.long), 0.0).tolist() == [0, 1]

    def test_nothing(self):
        assert mask_nms(torch.zeros(0, 3, 4, dtype=torch.bool), torch.zeros(0, dtype=torch.long), 0.5).tolist() == []
        empty = torch.zeros(3, 3, 4, dtype=torch.bool)
        assert mask_nms(empty, torch.zeros(3, dtype=torch.long), 0.5).tolist() == [0, 1, 2]


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 8), threshold=st.sampled_from([0.0, 0.2, 0.5, 0.8]))
@settings(max_examples=80, deadline=None)
def test_as_a_loop_over_pixels(seed: int, count: int, threshold: float):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, 6, 7, dtype=torch.bool)
    for mask in masks:
        (y0, y1), (x0, x1) = (torch.randint(0, n, (2,), generator=generator).sort().values for n in (7, 8))
        mask[y0:y1, x0:x1] = torch.rand(int(y1 - y0), int(x1 - x0), generator=generator) < 0.9
    classes = torch.randint(0, 2, (count,), generator=generator)
    assert mask_nms(masks, classes, threshold).tolist() == naive(masks, classes.tolist(), threshold)
