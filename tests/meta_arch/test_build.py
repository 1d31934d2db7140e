"""What the keys of matching and losses become, and which values and combinations are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode

import psf.ops
from psf import model_zoo
from psf.losses import PerLayerAssigner, SharedAssigner
from psf.meta_arch.build import build_assigner, build_criterion
from psf.meta_arch.recipe import check_recipe
from tests.models import RECIPES, RELEASED, tiny_config, tiny_model


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_both_recipes_are_sound(recipe: dict[str, Any]):
    check_recipe(tiny_config(recipe))


def test_the_tests_keys_are_those_of_the_released_configs():
    cfg = tiny_config()
    cfg.merge_from_file(model_zoo.get_config_file("coco/released/Base-Released.yaml"))
    assert cfg.MODEL.PSF == tiny_config(RELEASED).MODEL.PSF


@pytest.mark.parametrize(
    "key",
    [
        "QUERIES",
        "MSDA",
        "THING_CLASSIFIER",
        "MATCHER.MODE",
        "TEST.CANDIDATES",
        "TEST.INSTANCE.BOXES",
        "MASK_DECODER.STUFF_POSITION",
        "MASK_DECODER.THING_POSITION",
    ],
)
def test_unknown_value_names_the_key_and_what_is_expected(key: str):
    with pytest.raises(ValueError, match=rf'MODEL\.PSF\.{key} is "other": expected one of \['):
        check_recipe(tiny_config({key: "other"}))


def test_an_implementation_that_cannot_run_is_found_before_anything_is_built(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PSF_MSDA", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    cfg = tiny_config({"MSDA": "triton"})  # on the CPU
    with pytest.raises(ValueError, match=r"the key MODEL\.PSF\.MSDA is 'triton', .*"):
        check_recipe(cfg)
    monkeypatch.setenv("PSF_MSDA", "auto")
    check_recipe(cfg)


def test_each_model_has_its_own_implementation(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PSF_MSDA", raising=False)
    used: set[str] = set()
    attend_by = psf.ops.attend_by

    def recorded(name: str, *inputs: Any, **options: Any) -> Any:
        used.add(name)
        return attend_by(name, *inputs, **options)

    monkeypatch.setattr(psf.ops, "attend_by", recorded)
    models = {name: tiny_model({"MSDA": name}).eval() for name in ("bag", "reference")}
    for name, model in models.items():
        used.clear()
        with torch.no_grad():
            model.candidates(torch.zeros(1, 3, 64, 64), None)
        assert used == {name}


COMBINATIONS = {
    "matched queries alone cannot teach classes": (
        {"MATCHER.MODE": "per_layer"},
        r'MATCHER\.MODE "per_layer".*set MODEL\.PSF\.THING_CLASSIFIER to "location_decoder"',
    ),
    "padding must not be attended to": (
        {**RELEASED, "MASK_DECODER.THING_SELF_ATTENTION": True},
        r"MASK_DECODER\.THING_SELF_ATTENTION to False",
    ),
    "no layer, no classes": (
        {"LOCATION_DECODER.NUM_LAYERS": 0, "THING_CLASSIFIER": "location_decoder"},
        r"LOCATION_DECODER\.NUM_LAYERS is 0",
    ),
    "no layer, no boxes": (
        {"LOCATION_DECODER.NUM_LAYERS": 0, "TEST.INSTANCE.BOXES": "location_decoder"},
        r"LOCATION_DECODER\.NUM_LAYERS is 0",
    ),
    "no layer, no places": (
        {"LOCATION_DECODER.NUM_LAYERS": 0, "MASK_DECODER.THING_POSITION": "located"},
        r"LOCATION_DECODER\.NUM_LAYERS is 0",
    ),
    "heads share the channels": ({"NUM_HEADS": 7}, r"HIDDEN_DIM 64 is not a multiple of MODEL\.PSF\.NUM_HEADS 7"),
    "centres are no boxes": (
        {"LOCATION_DECODER.TARGET": "mass_center", "TEST.INSTANCE.BOXES": "location_decoder"},
        r'predicts no boxes with LOCATION_DECODER\.TARGET "mass_center"',
    ),
    "no task": (
        {f"TEST.{task}_ON": False for task in ("PANOPTIC", "INSTANCE", "SEMANTIC")},
        r"TEST\.PANOPTIC_ON, INSTANCE_ON and SEMANTIC_ON are all False",
    ),
}


@pytest.mark.parametrize(("keys", "message"), COMBINATIONS.values(), ids=COMBINATIONS)
def test_combinations_that_mean_nothing(keys: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        check_recipe(tiny_config(keys))


MATCHER_KEYS = {
    "MATCHER.CLASS_WEIGHT": 3.0,
    "MATCHER.L1_WEIGHT": 4.0,
    "MATCHER.GIOU_WEIGHT": 6.0,
    "MATCHER.DICE_WEIGHT": 7.0,
    "LOSS.FOCAL_ALPHA": 0.5,
    "LOSS.FOCAL_GAMMA": 1.5,
}
MATCHER_VALUES = {
    "class_weight": 3.0,
    "l1_weight": 4.0,
    "giou_weight": 6.0,
    "dice_weight": 7.0,
    "focal_alpha": 0.5,
    "focal_gamma": 1.5,
}


def test_shared_matching():
    matching = build_assigner(tiny_config(MATCHER_KEYS))
    assert isinstance(matching, SharedAssigner)
    assert vars(matching.matcher) == MATCHER_VALUES


def test_matching_per_layer():
    keys = {**RELEASED, **MATCHER_KEYS, "MATCHER.QUERIES_PER_THING": 2}
    matching = build_assigner(tiny_config(keys))
    assert isinstance(matching, PerLayerAssigner)
    assert vars(matching.matcher) == MATCHER_VALUES
    assert vars(matching.second_matcher) == {**MATCHER_VALUES, "class_weight": 6.0}  # twice that of the first
    assert matching.queries_per_thing == 2


def test_criterion():
    values = {
        "cls_weight": 2.5,
        "stuff_cls_weight": 3.5,
        "seg_weight": 4.5,
        "det_cls_weight": 5.5,
        "det_l1_weight": 6.5,
        "det_giou_weight": 7.5,
        "things_weight": 8.5,
        "stuff_weight": 9.5,
        "balance": "share",
        "focal_alpha": 0.5,
        "focal_gamma": 1.5,
    }
    criterion = build_criterion(tiny_config({f"LOSS.{name.upper()}": value for name, value in values.items()}))
    assert vars(criterion) == {**values, "mask_upsampling": 2}
    assert build_criterion(tiny_config({"MASK_FEATURE": "res2"})).mask_upsampling == 1


@pytest.mark.parametrize("key", ["MATCHER.QUERIES_PER_THING", "NUM_THING_QUERIES", "TEST.NUM_TOP_PAIRS"])
def test_no_queries(key: str) -> None:
    with pytest.raises(ValueError, match=rf"MODEL.PSF.{key} is 0: expected 1 "):
        check_recipe(tiny_config({key: 0}))


@pytest.mark.parametrize(
    ("image_format", "num_means", "num_stds"),
    [("RGB", 3, 3), ("BGR", 3, 3), ("L", 1, 1), ("BANDS", 1, 1), ("BANDS", 7, 7)],
)
def test_channels_that_agree(image_format: str, num_means: int, num_stds: int) -> None:
    check_recipe(channels_config(image_format, num_means, num_stds))


@pytest.mark.parametrize(
    ("image_format", "num_means", "num_stds", "meaning"),
    [
        ("RGB", 4, 4, "3;"),
        ("RGB", 3, 4, "3;"),
        ("L", 3, 3, "1;"),
        ("BANDS", 4, 3, "as many as"),
        ("BANDS", 0, 0, "as many as"),
    ],
)
def test_channels_that_disagree(image_format: str, num_means: int, num_stds: int, meaning: str) -> None:
    message = rf'PIXEL_MEAN has {num_means} numbers, MODEL\.PIXEL_STD {num_stds}.*"{image_format}" means {meaning}'
    with pytest.raises(ValueError, match=message):
        check_recipe(channels_config(image_format, num_means, num_stds))


def test_unknown_format() -> None:
    with pytest.raises(ValueError, match=r'INPUT\.FORMAT is "YUV-BT\.601": expected one of \[.*BANDS'):
        check_recipe(channels_config("YUV-BT.601", 3, 3))


def channels_config(image_format: str, num_means: int, num_stds: int) -> CfgNode:
    numbers = {"MODEL__PIXEL_MEAN": [1.0] * num_means, "MODEL__PIXEL_STD": [1.0] * num_stds}
    return tiny_config(INPUT__FORMAT=image_format, **numbers)


@pytest.mark.parametrize("key", ["LOCATION_DECODER.TWO_STAGE", "MASK_DECODER.BOX_PRIOR"])
@pytest.mark.parametrize("wrong", [{"LOCATION_DECODER.NUM_LAYERS": 0}, {"LOCATION_DECODER.TARGET": "mass_center"}])
def test_what_needs_boxes(key, wrong):
    with pytest.raises(ValueError, match=rf"MODEL\.PSF\.{key} is True, which needs predicted boxes"):
        check_recipe(tiny_config({key: True, **wrong}))
