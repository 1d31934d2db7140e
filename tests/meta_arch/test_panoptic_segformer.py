"""The model as Detectron2 builds and calls it: what it refuses, what it takes, and where its classes come from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from psf import PanopticSegFormer
from psf.data import panoptic_metadata
from tests.mini_set import CATEGORIES
from tests.models import RECIPES, SMALL, check_result, gradients, make_input, tiny_config, tiny_model, total

COUNTED = {"NUM_THING_CLASSES": -1, "NUM_STUFF_CLASSES": -1}


@pytest.fixture
def named() -> Iterator[str]:
    """A dataset name in whose metadata stuff comes first and the kinds alternate: things are 1 and 3."""
    name = "psf_test_model_classes"
    MetadataCatalog.get(name).set(**panoptic_metadata(CATEGORIES))
    yield name
    MetadataCatalog.remove(name)


class TestBuild:
    @pytest.mark.parametrize("recipe", RECIPES)
    def test_from_the_registry(self, recipe: str):
        model = build_model(tiny_config(RECIPES[recipe]))
        assert isinstance(model, PanopticSegFormer)
        assert (model.thing_classifier is None) == (recipe != "paper")
        assert model.location_decoder.box_refinement == (recipe != "paper")
        assert (model.fine_level is None) == (model.location_decoder.proposals is None) == (recipe != "small")
        assert len(model.neck.extra_input_proj) == (1 if recipe == "released" else 0)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("MATCHER.MODE", "hungarian"),
            ("THING_CLASSIFIER", "both"),
            ("LOCATION_DECODER.TARGET", "point"),
            ("MASK_DECODER.MASK_ACTIVATION", "softmax"),
            ("MASK_DECODER.STUFF_POSITION", "key"),
            ("LOSS.BALANCE", "equal"),
            ("TEST.CANDIDATES", "all"),
            ("TEST.INSTANCE.BOXES", "none"),
        ],
    )
    def test_unknown_value_names_key_value_and_choices(self, key: str, value: str):
        with pytest.raises(ValueError, match=rf'MODEL\.PSF\.{key} is "{value}": expected one of \['):
            build_model(tiny_config({key: value}))

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({"HIDDEN_DIM": 48}, r"MODEL\.PSF\.HIDDEN_DIM is 48: expected a multiple of 32"),
            ({"NUM_HEADS": 7}, r"HIDDEN_DIM 64 is not a multiple of MODEL\.PSF\.NUM_HEADS 7"),
            ({"NUM_FEATURE_LEVELS": 2}, r"NUM_FEATURE_LEVELS is 2, fewer than the 3 maps of"),
            ({"IN_FEATURES": ["res4", "res6"]}, r"IN_FEATURES contains \['res6'\]; the backbone has"),
            ({"MASK_DECODER.NUM_THING_LAYERS": 0}, r"mask decoder has 0 layers; expected at least 1"),
        ],
    )
    def test_numbers_that_do_not_fit(self, keys: dict[str, Any], message: str):
        with pytest.raises(ValueError, match=message):
            build_model(tiny_config(keys))

    def test_other_mask_levels(self):
        """The mask decoder attends to the maps that are named, whatever they are."""
        losses, found = gradients(
            tiny_model({"IN_FEATURES": ["res4", "res5"], "NUM_FEATURE_LEVELS": 2}),
            [make_input(64, 96, things=2, stuff=2)],
        )
        assert total(losses).isfinite() and all(gradient is not None for gradient in found.values())

    def test_frozen_parameters_have_no_gradient(self):
        model = tiny_model()
        frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        assert frozen and all(name.startswith(("backbone.stem", "backbone.res2")) for name in frozen)


class TestClasses:
    def test_from_metadata_in_any_order(self, named: str):
        model = tiny_model(COUNTED, DATASETS__TRAIN=(named,))
        assert model.classes == ((1, 3), (0, 2, 4))
        assert model.location_decoder.class_embed[0].out_features == 2
        assert model.stuff_query_feat.num_embeddings == 3

    def test_training_and_results_agree_about_them(self, named: str):
        """One image by heart: its results carry the ids of its ground truth."""
        keys = {**COUNTED, **{f"MASK_DECODER.NUM_{kind}_LAYERS": 1 for kind in ("THING", "STUFF")}}
        model = tiny_model(keys, DATASETS__TRAIN=(named,))
        x = make_input(64, 64, things=1, stuff=2)
        for segment, category_id in zip(x["segments_info"], (4, 2, 3), strict=True):
            segment["category_id"] = category_id
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        model.train()
        for _ in range(60):
            loss = total(model([x]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            [result] = model([x])
        found = {(segment["category_id"], segment["isthing"]) for segment in result["panoptic_seg"][1]}
        assert found == {(4, False), (2, False), (3, True)}

    def test_contradiction_names_both(self, named: str):
        with pytest.raises(ValueError, match=rf'MODEL\.PSF\.NUM_THING_CLASSES is 3, but dataset "{named}" has 2'):
            build_model(tiny_config({**COUNTED, "NUM_THING_CLASSES": 3}, DATASETS__TEST=(named,)))

    def test_separated_ids(self):
        model = tiny_model(COUNTED, DATASETS__TEST=("coco_2017_val_panoptic_separated",)).eval()
        x = make_input(64, 96, things=0, stuff=0)
        with torch.no_grad():
            [result] = model([x])
        assert result["sem_seg"].shape == (54, 64, 96)  # 0 is "things"


class TestImages:
    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_not_finite(self, value: float, training: bool):
        x = make_input(32, 32, things=1, stuff=1)
        x["image"] = x["image"].float()
        x["image"][1, 3, 5] = value
        with pytest.raises(ValueError, match=r"image noise_0\.png has NaN or infinite values"):
            tiny_model().train(training)([x])

    @pytest.mark.parametrize("channels", [1, 4])
    def test_other_channels_than_the_models(self, channels: int):
        """One would be broadcast to three, unnoticed."""
        x = make_input(32, 32, things=1, stuff=1)
        x["image"] = x["image"][:1].expand(channels, -1, -1)
        with pytest.raises(ValueError, match=rf"noise_0\.png has {channels} channels, the model 3 \(MODEL\.PIXEL_MEAN"):
            tiny_model()([x])

    def test_no_ground_truth_in_training(self):
        x = make_input(32, 32, things=1, stuff=1)
        del x["panoptic_labels"]
        with pytest.raises(ValueError, match=r"noise_0\.png: no ground truth to train on"):
            tiny_model().train()([x])

    @pytest.mark.parametrize("recipe", RECIPES)
    @pytest.mark.parametrize("size", [(1, 1), (1, 60), (17, 400), (33, 31)], ids=str)
    def test_unusual_sizes(self, size: tuple[int, int], recipe: str):
        model = tiny_model(RECIPES[recipe])
        small = make_input(*size, things=1, stuff=1)
        for inputs in ([small], [small, make_input(40, 56, things=2, stuff=3, seed=1)]):
            losses, found = gradients(model, inputs)
            assert all(value.isfinite() for value in losses.values())
            assert all(gradient is not None and gradient.isfinite().all() for gradient in found.values())

    def test_integers_and_floats_are_alike(self):
        model, x = tiny_model().train(), make_input(64, 96, things=2, stuff=2)
        losses = model([x])
        same = model([{**x, "image": x["image"].float()}])
        assert losses.keys() == same.keys() and all(torch.equal(losses[name], same[name]) for name in losses)

    def test_crowds_and_void_are_no_ground_truth(self):
        """What lies in a crowd or in void belongs to no mask, whatever is written there."""
        model, x = tiny_model().train(), make_input(64, 96, things=2, stuff=2)
        crowd = {"id": 9, "category_id": 1, "isthing": True, "iscrowd": True}
        x["panoptic_labels"][40:, 60:] = 9
        void = {**x, "panoptic_labels": x["panoptic_labels"].clone()}
        void["panoptic_labels"][40:, 60:] = 0
        losses, same = model([{**x, "segments_info": [*x["segments_info"], crowd]}]), model([void])
        assert all(torch.equal(losses[name], same[name]) for name in losses)


class TestTypes:
    @pytest.mark.parametrize("recipe", RECIPES)
    def test_float64(self, recipe: str):
        model = tiny_model(RECIPES[recipe])
        inputs = [make_input(64, 96, things=3, stuff=2), make_input(50, 72, things=0, stuff=3, seed=1)]
        single, _ = gradients(model, inputs)
        double, found = gradients(model.double(), inputs)
        assert {gradient.dtype for gradient in found.values()} == {torch.float64}
        for name, value in double.items():
            torch.testing.assert_close(value.float(), single[name], rtol=1e-3, atol=1e-4, msg=name)
        with torch.no_grad():
            [result, _] = model.eval()(inputs)
        assert result["sem_seg"].dtype == torch.float64

    def test_channels_last_gives_the_same(self):
        plain, last = tiny_model(), tiny_model({"CHANNELS_LAST": True})
        last.load_state_dict(plain.state_dict())
        assert last.backbone.res3[0].conv2.weight.is_contiguous(memory_format=torch.channels_last)
        inputs = [make_input(64, 96, things=3, stuff=2), make_input(50, 72, things=0, stuff=3, seed=1)]
        expected, _ = gradients(plain, inputs)
        losses, found = gradients(last, inputs)
        for name, value in losses.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4, msg=name)
        assert all(gradient is not None for gradient in found.values())

    @pytest.mark.parametrize("recipe", RECIPES)
    @torch.no_grad()
    def test_a_model_in_bfloat16(self, recipe: str):
        model = tiny_model(RECIPES[recipe]).to(torch.bfloat16).eval()
        x = make_input(64, 96, things=0, stuff=0)
        [result] = model([{**x, "image": x["image"].to(torch.bfloat16)}])
        assert result["panoptic_seg"][0].shape == (64, 96)

    @pytest.mark.parametrize("recipe", RECIPES)
    def test_bfloat16_autocast(self, recipe: str):
        model = tiny_model(RECIPES[recipe])
        inputs = [make_input(64, 96, things=3, stuff=2), make_input(50, 72, things=0, stuff=3, seed=1)]
        with torch.autocast("cpu", torch.bfloat16):
            losses, found = gradients(model, inputs)
            with torch.no_grad():
                results = model.eval()(inputs)
        assert {value.dtype for value in losses.values()} == {torch.float32}
        assert all(gradient.isfinite().all() for gradient in found.values())
        assert len(results) == 2


@pytest.mark.parametrize("ignored", [True, False])
def test_padding_is_masked_out_or_takes_part(ignored: bool):
    model = tiny_model({"MASK_DECODER.IGNORE_PADDING": ignored}).eval()
    seen: list[torch.Tensor] = []
    model.stuff_decoder.register_forward_hook(lambda module, inputs, output: seen.append(output.mask_scores[-1]))
    inputs = [make_input(*size, things=0, stuff=0) for size in ((32, 48), (64, 64))]
    with torch.no_grad():
        model(inputs)
    [masks] = seen  # (2, 4, 8, 8), of which the first image has 4 x 6
    own = torch.zeros(8, 8, dtype=torch.bool)
    own[:4, :6] = True
    assert bool((masks[0][:, ~own] == 0).all()) == ignored
    assert (masks[0][:, own] > 0).all() and (masks[1] > 0).all()


ALONE = {**SMALL, "FINE_FEATURE": "", "MASK_FEATURE": "res2"}
WITH_FINE_LEVEL = {**SMALL, "IN_FEATURES": ["res4", "res5"], "FINE_FEATURE": "res3", "MASK_FEATURE": "res2"}
MASK_FEATURE_RECIPES = pytest.mark.parametrize("recipe", [ALONE, WITH_FINE_LEVEL], ids=["alone", "with a fine level"])


@MASK_FEATURE_RECIPES
@pytest.mark.parametrize(("things", "stuff"), [(0, 0), (0, 2), (1, 0), (4, 3)])
def test_training_with_mask_features(recipe: dict, things: int, stuff: int) -> None:
    model = tiny_model(recipe)
    assert model.mask_stride == 4
    losses = model([make_input(64, 96, things=things, stuff=stuff), make_input(50, 70, things=1, stuff=1)])
    assert all(loss.isfinite() for loss in losses.values())
    total(losses).backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in trained.values())


@MASK_FEATURE_RECIPES
def test_results_with_mask_features(recipe: dict) -> None:
    model = tiny_model(recipe).eval()
    inputs = [
        make_input(64, 96, things=1, stuff=1),
        make_input(50, 70, things=1, stuff=1),
        make_input(1, 1, things=0, stuff=0),
    ]
    with torch.no_grad():
        results = model(inputs)
    for result, size in zip(results, [(64, 96), (50, 70), (1, 1)], strict=True):
        check_result(result, model, *size)


@MASK_FEATURE_RECIPES
def test_one_pixel_in_training(recipe: dict) -> None:
    losses = tiny_model(recipe)([make_input(1, 1, things=1, stuff=0)])
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"MASK_FEATURE": "res3"}, r'MASK_FEATURE is "res3": expected .* finer than stride 8, "res3" of .*IN_FEATURES'),
        ({"MASK_FEATURE": "res2", "FINE_FEATURE": "res2"}, r'finer than stride 4, "res2" of MODEL\.PSF\.FINE_FEATURE'),
        ({"MASK_FEATURE": "res9"}, r'MASK_FEATURE is "res9"'),
    ],
)
def test_a_map_that_is_not_finer(keys: dict, message: str) -> None:
    from detectron2.modeling import build_model

    with pytest.raises(ValueError, match=message):
        build_model(tiny_config(keys))
