"""One training step of every recipe and variant, on images with nothing, one or many of a kind."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from psf import PanopticSegFormer
from psf.losses.criterion import PanopticCriterion
from psf.structures import PanopticTargets, TrainingPredictions
from tests.models import RECIPES, RELEASED, gradients, make_input, tiny_model, total

# Keys under MODEL.PSF, beside those of the recipe.
VARIANTS: dict[str, Mapping[str, Any]] = {
    **RECIPES,
    "mass centre": {"LOCATION_DECODER.TARGET": "mass_center"},
    "mass centre, released": {
        **RELEASED,
        "LOCATION_DECODER.TARGET": "mass_center",
        "TEST.INSTANCE.BOXES": "mask",
    },
    "no location layers": {"LOCATION_DECODER.NUM_LAYERS": 0},
    "one location layer, refined": {"LOCATION_DECODER.NUM_LAYERS": 1, "LOCATION_DECODER.BOX_REFINEMENT": True},
    "four levels": {"NUM_FEATURE_LEVELS": 4},
    "five levels": {"NUM_FEATURE_LEVELS": 5},
    "positions in the keys": {"MASK_DECODER.KEY_POSITION": True},
    "located things": {"MASK_DECODER.THING_POSITION": "located"},
    "located things, released": {**RELEASED, "MASK_DECODER.THING_POSITION": "located"},
    "one layer each": {"MASK_DECODER.NUM_THING_LAYERS": 1, "MASK_DECODER.NUM_STUFF_LAYERS": 1},
    "classes by the location decoder": {"THING_CLASSIFIER": "location_decoder"},
    "two queries per thing": {**RELEASED, "MATCHER.QUERIES_PER_THING": 2},
    "fewer queries than things": {"NUM_THING_QUERIES": 2},
    "fewer queries than things, released": {**RELEASED, "NUM_THING_QUERIES": 2},
    "share of the segments": {"LOSS.BALANCE": "share"},
    "joint": {"QUERIES": "joint"},
    "joint, released": {**RELEASED, "QUERIES": "joint"},
    "joint, mass centre": {"QUERIES": "joint", "LOCATION_DECODER.TARGET": "mass_center"},
    "joint, stuff alone": {"QUERIES": "joint", "NUM_THING_CLASSES": 0},
    "joint, fewer queries than segments": {"QUERIES": "joint", "NUM_THING_QUERIES": 2},
    "things alone": {"NUM_STUFF_CLASSES": 0},
    "things alone, released": {**RELEASED, "NUM_STUFF_CLASSES": 0},
    "stuff alone": {"NUM_THING_CLASSES": 0},
    "stuff alone, released": {**RELEASED, "NUM_THING_CLASSES": 0},
}


@functools.cache
def model(variant: str) -> PanopticSegFormer:
    """Steps change no weight, so a model serves many tests."""
    return tiny_model(VARIANTS[variant])


def batch_for(variant: str, *images: tuple[int, int]) -> list[dict[str, Any]]:
    """Images of unequal sizes with these numbers of things and stuff, as far as the model knows them."""
    knows_things, knows_stuff = (len(ids) > 0 for ids in model(variant).classes)
    sizes = [(64, 96), (50, 72)]
    return [
        make_input(
            *sizes[i],
            things=things if knows_things else 0,
            stuff=stuff if knows_stuff else 0,
            seed=i,
            first_stuff_id=3 if knows_things else 0,
        )
        for i, (things, stuff) in enumerate(images)
    ]


def assert_sound(losses: dict[str, torch.Tensor], found: dict[str, torch.Tensor | None]) -> None:
    assert [name for name, value in losses.items() if not value.isfinite()] == []
    assert [name for name, gradient in found.items() if gradient is None] == []
    assert [name for name, gradient in found.items() if not gradient.isfinite().all()] == []


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("stuff", [0, 1, 4])
@pytest.mark.parametrize("things", [0, 1, 4])
@pytest.mark.parametrize("recipe", RECIPES)
def test_edge_matrix(recipe: str, things: int, stuff: int, images: int):
    inputs = batch_for(recipe, *[(things, stuff)] * images)
    assert_sound(*gradients(model(recipe), inputs))


@pytest.mark.parametrize("images", [[(4, 4), (0, 0)], [(0, 1), (3, 0)], [(0, 0)]], ids=str)
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in RECIPES])
def test_variants(variant: str, images: list[tuple[int, int]]):
    assert_sound(*gradients(model(variant), batch_for(variant, *images)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_learns(variant: str):
    _, found = gradients(model(variant), batch_for(variant, (4, 3), (2, 2)))
    assert [name for name, gradient in found.items() if not gradient.any()] == []


ALL_TERMS = {"det_cls", "det_l1", "det_giou", "cls_things", "seg_things", "cls_stuff", "seg_stuff"}
ABSENT_TERMS = {
    "paper": set(),
    "released": {"cls_things"},
    "mass centre": {"det_giou"},
    "no location layers": {"det_cls", "det_l1", "det_giou"},
    "classes by the location decoder": {"cls_things"},
    "small": {"cls_things"},
    "joint": {"cls_stuff", "seg_stuff"},
    "things alone": {"cls_stuff", "seg_stuff"},
    "stuff alone": {"det_cls", "det_l1", "det_giou", "cls_things", "seg_things"},
}


@pytest.mark.parametrize(("variant", "absent"), ABSENT_TERMS.items())
def test_names_of_the_terms(variant: str, absent: set[str]):
    losses, _ = gradients(model(variant), batch_for(variant, (2, 2)))
    terms = {re.fullmatch(r"loss_(.+?)(_\d+|_proposals)?", name)[1] for name in losses}
    assert any(name.endswith("_proposals") for name in losses) == (variant == "small")
    assert terms == ALL_TERMS - absent


@pytest.mark.parametrize("recipe", RECIPES)
class TestSymmetries:
    def test_two_images_weigh_as_two_batches_of_one(self, recipe: str):
        """At the same padded size (GroupNorm sees the padding), in units of what the loss is divided by."""
        both = tiny_model({**RECIPES[recipe], "SIZE_DIVISIBILITY": 32}).double().train()
        inputs = batch_for(recipe, (3, 1), (0, 4))
        inputs[1]["image"], inputs[1]["panoptic_labels"] = (
            torch.nn.functional.pad(inputs[1][key], (0, 0, 0, 10), value=1) for key in ("image", "panoptic_labels")
        )  # 60 x 72: padded to 64 x 96 as the other one
        counts = [count_segments(x) for x in inputs]
        losses = both(inputs)
        alone = [both([x]) for x in inputs]
        for name, value in losses.items():
            units = [unit(both.criterion, name, *count) for count in counts]
            whole = unit(both.criterion, name, *map(sum, zip(*counts, strict=True)))
            expected = sum(u * one[name] for u, one in zip(units, alone, strict=True)) / whole
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7, msg=name)

    def test_order_of_the_images(self, recipe: str):
        inputs = batch_for(recipe, (3, 1), (1, 4))
        there, back = model(recipe).train()(inputs), model(recipe)(inputs[::-1])
        for name, value in there.items():
            torch.testing.assert_close(back[name], value, rtol=1e-4, atol=1e-5, msg=name)

    def test_order_of_the_thing_queries(self, recipe: str):
        permuted = tiny_model(RECIPES[recipe])
        inputs = batch_for(recipe, (3, 1), (1, 4))
        before = permuted.train()(inputs)
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        if permuted.location_decoder.proposals is not None:
            pytest.skip("queries are proposals, in the order of their scores")
        for embedding in (permuted.location_decoder.query_feat, permuted.location_decoder.query_pos):
            embedding.weight.data = embedding.weight.data[order]
        for name, value in permuted(inputs).items():
            torch.testing.assert_close(value, before[name], rtol=1e-4, atol=1e-5, msg=name)

    def test_order_of_the_segments(self, recipe: str):
        inputs = batch_for(recipe, (3, 2))
        there = model(recipe).train()(inputs)
        inputs[0]["segments_info"] = inputs[0]["segments_info"][::-1]
        for name, value in model(recipe)(inputs).items():
            torch.testing.assert_close(value, there[name], rtol=1e-4, atol=1e-5, msg=name)


def count_segments(x: dict[str, Any]) -> tuple[int, int]:
    """Numbers of things and of stuff segments that no other hides."""
    present = set(x["panoptic_labels"].unique().tolist())
    kinds = [segment["isthing"] for segment in x["segments_info"] if segment["id"] in present]
    return sum(kinds), len(kinds) - sum(kinds)


def unit(criterion: PanopticCriterion, name: str, things: int, stuff: int) -> int:
    """What a term is divided by; with shares, weight T / (T + S) and division by T leave T + S."""
    things, stuff = max(things, 1), max(stuff, 1)
    if criterion.balance == "share":
        return things + stuff
    return stuff if "stuff" in name else things


def test_learns_by_heart():
    """A few steps on one image bring every term down; the slowest is that of the last stuff masks, to about 0.6."""
    learner = tiny_model().train()
    inputs = batch_for("paper", (2, 2))
    optimizer = torch.optim.AdamW(learner.parameters(), lr=2e-3)
    first = {name: value.item() for name, value in learner(inputs).items()}
    for _ in range(15):
        loss = total(learner(inputs))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        shares = {name: value.item() / first[name] for name, value in learner(inputs).items()}
    assert {name: share for name, share in shares.items() if share > 0.75} == {}


@pytest.mark.parametrize("recipe", RECIPES)
def test_losses_are_computed_without_autocast(recipe: str, monkeypatch: pytest.MonkeyPatch):
    """Under autocast the network is in half precision; the loss of its output is that without autocast, to the bit."""
    learner, calls = model(recipe).train(), []
    plain = learner.criterion

    def criterion(predictions: TrainingPredictions, *others: Any) -> dict[str, torch.Tensor]:
        calls.append((predictions, others))
        return plain(predictions, *others)

    monkeypatch.setattr(learner, "criterion", criterion)
    inputs = batch_for(recipe, (3, 1), (1, 4))
    with torch.autocast("cpu", torch.bfloat16):
        losses = learner(inputs)
    [(predictions, others)] = calls
    in_full_precision = learner(inputs)
    assert all(not torch.equal(value, in_full_precision[name]) for name, value in losses.items())
    for name, value in plain(predictions, *others).items():
        assert value.dtype == torch.float32 and torch.equal(value, losses[name]), name


@pytest.mark.parametrize("variant", ["mass centre", "mass centre, released"])
def test_centers_of_mass_are_computed_once_per_image_and_step(variant: str, monkeypatch: pytest.MonkeyPatch):
    """For the costs and the losses of all layers."""
    centers = PanopticTargets.__dict__["thing_mass_centers_norm"]
    plain, seen = centers.func, []

    def count(target: PanopticTargets) -> torch.Tensor:
        seen.append(target)
        return plain(target)

    learner, batch = model(variant).train(), batch_for(variant, (2, 1), (3, 1))
    monkeypatch.setattr(centers, "func", count)
    for step in (1, 2):
        learner(batch)
        assert len(seen) == len({id(target) for target in seen}) == step * len(batch)
