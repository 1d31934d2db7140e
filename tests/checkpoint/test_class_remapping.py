"""Rows of heads follow the names of their classes."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from psf.checkpoint import (
    ClassNames,
    adapt_input_channels,
    adapt_query_count,
    adapted_weight,
    changes_table,
    compare_classes,
    remap_classes,
)
from psf.engine import Checkpointer
from tests.models import RECIPES, tiny_model

FOUND = ClassNames(("person", "traffic light", "car"), ("sky", "sea", "wall-brick", "road"))
WANTED = ClassNames(("Car", "boat", "traffic_light"), ("sky", "Wall Brick", "person", "sea", "moss"))
SOURCES = {"things": (2, None, 1), "stuff": (0, 2, None, 1, None)}


def test_sources_by_name():
    """A class that was a thing and is stuff now is new."""
    changes = compare_classes(FOUND, WANTED)
    assert {kind: change.sources for kind, change in changes.items()} == SOURCES
    assert changes["things"].groups() == {
        "kept": [],
        "re-mapped": ["Car (2 -> 0)", "traffic_light (1 -> 2)"],
        "new": ["boat"],
        "dropped": ["person"],
    }
    assert changes["stuff"].groups() == {
        "kept": ["sky"],
        "re-mapped": ["Wall Brick (2 -> 1)", "sea (1 -> 3)"],
        "new": ["person", "moss"],
        "dropped": ["road"],
    }
    assert not changes["stuff"].is_identity


def test_the_same_classes_stay():
    for names in (FOUND, ClassNames(("a", "a", "A"), ()), ClassNames((), ("x",))):
        assert all(change.is_identity for change in compare_classes(names, names).values())
    fewer = compare_classes(ClassNames(("a", "b"), ()), ClassNames(("a",), ()))["things"]
    assert not fewer.is_identity and fewer.groups()["kept"] == ["a"]


def test_the_same_to_the_letter_comes_first():
    found, wanted = ClassNames(("stop sign", "stop-sign"), ()), ClassNames(("stop-sign", "Stop Sign"), ())
    assert compare_classes(found, wanted)["things"].sources == (1, 0)


@pytest.mark.parametrize("recipe", RECIPES)
def test_rows_of_a_model(recipe: str):
    """Each class's row is the old one where the name was known, else what the model starts with; the rest stays."""
    sizes = [
        {"NUM_THING_CLASSES": len(names.things), "NUM_STUFF_CLASSES": len(names.stuff)} for names in (FOUND, WANTED)
    ]
    old, fresh = (tiny_model({**RECIPES[recipe], **size}, seed=seed).state_dict() for seed, size in enumerate(sizes))
    before = [{name: x.clone() for name, x in state.items()} for state in (old, fresh)]
    remapped = remap_classes(old, fresh, compare_classes(FOUND, WANTED))
    for state, copies in zip((old, fresh), before, strict=True):  # neither the checkpoint nor the model is written to
        assert all(torch.equal(x, copies[name]) for name, x in state.items())
    with_rows = {"things": ["location_decoder.class_embed.1.bias"], "stuff": ["stuff_query_feat.weight"]}
    with_rows["stuff"].append("stuff_query_pos.weight")
    if recipe == "paper":
        with_rows["things"].append("thing_classifier.layers.0.weight")
    for kind, names in with_rows.items():
        for name in names:
            rows = [fresh[name][i] if j is None else old[name][j] for i, j in enumerate(SOURCES[kind])]
            assert torch.equal(remapped[name], torch.stack(rows)), name
    assert {name: x.shape for name, x in remapped.items()} == {name: x.shape for name, x in fresh.items()}
    changed = {name for name, x in remapped.items() if x is not old[name]}
    heads = ("location_decoder.class_embed.", "location_decoder.proposals.class_head.", "thing_classifier.")
    starts = (*heads, "stuff_query_feat.", "stuff_query_pos.")
    assert changed == {name for name in old if name.startswith(starts)}


def test_rows_of_another_size_stay_as_they_are():
    changes = compare_classes(FOUND, WANTED)
    fresh = {"stuff_query_feat.weight": torch.zeros(5, 8)}
    for old in (torch.ones(4, 6), torch.ones(3, 8)):
        assert remap_classes({"stuff_query_feat.weight": old}, fresh, changes)["stuff_query_feat.weight"] is old


def test_table():
    many = ClassNames(FOUND.things, tuple(f"a class with number {i}" for i in range(30)))
    text = changes_table(compare_classes(many, WANTED))
    lines = text.splitlines()
    assert max(map(len, lines)) < 130
    assert [line.split()[:3] for line in lines if line.startswith(("things", "stuff"))] == [
        ["things", "re-mapped", "2"],
        ["things", "new", "1"],
        ["things", "dropped", "1"],
        ["stuff", "new", "5"],
        ["stuff", "dropped", "30"],
    ]
    assert "Car (2 -> 0), traffic_light (1 -> 2)" in text


STEM = "backbone.stem.conv1.weight"
# One output channel, a kernel of one pixel: weights 1, 2, 6 of red, green, blue.
WEIGHT = torch.tensor([1.0, 2.0, 6.0]).view(1, 3, 1, 1)


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        (1, [9.0]),  # 1 + 2 + 6
        (2, [1.5, 3.0]),  # 1 and 2, times 3 / 2
        (4, [0.75, 1.5, 4.5, 0.75]),  # 1, 2, 6, 1, times 3 / 4
        (5, [0.6, 1.2, 3.6, 0.6, 1.2]),  # times 3 / 5
        (6, [0.5, 1.0, 3.0, 0.5, 1.0, 3.0]),
    ],
)
def test_by_hand(channels: int, expected: list[float]):
    assert adapted_weight(WEIGHT, channels).flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 12])
def test_the_rule_is_timms(channels: int):
    timm = pytest.importorskip("timm")
    weight = torch.randn(8, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(adapted_weight(weight, channels), timm.models.adapt_input_conv(channels, weight))


def test_which_weight():
    """One under "backbone." of which the channels alone differ, and are three in the checkpoint."""
    model = {
        STEM: torch.zeros(1, 4, 1, 1),
        "backbone.wide.weight": torch.zeros(2, 4, 1, 1),  # another number of outputs
        "backbone.other.weight": torch.zeros(1, 4, 1, 1),  # 5 channels there
        "backbone.line.weight": torch.zeros(1, 4),
        "head.weight": torch.zeros(1, 4, 1, 1),
        "backbone.absent.weight": torch.zeros(1, 4, 1, 1),
    }
    found = {
        STEM: WEIGHT,
        "backbone.wide.weight": WEIGHT,
        "backbone.other.weight": torch.zeros(1, 5, 1, 1),
        "backbone.line.weight": torch.zeros(1, 3),
        "head.weight": WEIGHT,
        "absent.weight": WEIGHT,
    }
    before = dict(found)
    assert adapt_input_channels(found, model) == {STEM: (1, 3, 1, 1)}
    assert torch.equal(found.pop(STEM), adapted_weight(WEIGHT, 4))
    assert found == {name: value for name, value in before.items() if name != STEM}


def test_names_that_lack_their_beginning():
    model = {STEM: torch.zeros(1, 4, 1, 1), "backbone.res2.0.conv1.weight": torch.zeros(1, 8, 1, 1)}
    found = {"stem.conv1.weight": WEIGHT, "conv1.weight": torch.zeros(9, 3, 1, 1)}
    assert adapt_input_channels(found, model, is_suffix=True)
    assert found.keys() == {STEM, "conv1.weight"}
    assert not adapt_input_channels({"stem.conv1.weight": WEIGHT}, model)


NAME = "location_decoder.query_feat.weight"


@pytest.mark.parametrize(("count", "expected"), [(2, [1.0, 2.0]), (5, [1.0, 2.0, 3.0, 0.0, 0.0])])
def test_the_first_are_taken(count: int, expected: list[float]):
    state = {NAME: torch.tensor([[1.0], [2.0], [3.0]]), "neck.weight": torch.ones(3, 1)}
    model = {NAME: torch.zeros(count, 1), "neck.weight": torch.zeros(count, 1)}
    assert adapt_query_count(state, model) == (3, count)
    assert state[NAME][:, 0].tolist() == expected
    assert len(state["neck.weight"]) == 3 and not model[NAME].any()


@pytest.mark.parametrize("shape", [(3, 1), (2, 4)])
def test_what_fits_or_is_of_another_size_is_left(shape: tuple[int, int]):
    state = {NAME: torch.ones(3, 1)}
    assert adapt_query_count(state, {NAME: torch.zeros(shape)}) is None
    assert torch.equal(state[NAME], torch.ones(3, 1))


@pytest.mark.parametrize("released", [False, True])
def test_fine_tuning(tmp_path: Path, caplog: pytest.LogCaptureFixture, released: bool):
    keys = {"LOCATION_DECODER.BOX_REFINEMENT": released}
    trained = tiny_model({"NUM_THING_QUERIES": 6, **keys})
    Checkpointer(trained, str(tmp_path)).save("model")
    for count, level in ((4, logging.INFO), (9, logging.WARNING)):
        model = tiny_model({"NUM_THING_QUERIES": count, **keys}, seed=1)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            Checkpointer(model).load(str(tmp_path / "model.pth"))
        [record] = [one for one in caplog.records if one.name.startswith("psf")]
        assert record.levelno == level and f"has 6, the model {count}" in record.getMessage()
        state, old = model.state_dict(), trained.state_dict()
        for name, value in state.items():
            both = min(len(value), len(old[name])) if value.dim() else None
            assert torch.equal(value[:both] if both else value, old[name][:both] if both else old[name]), name


def test_a_run_that_goes_on_has_as_many(tmp_path: Path):
    model = tiny_model({"NUM_THING_QUERIES": 6})
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    Checkpointer(model, str(tmp_path), optimizer=optimizer).save("model")
    other = tiny_model({"NUM_THING_QUERIES": 9})
    going_on = Checkpointer(other, str(tmp_path), optimizer=torch.optim.SGD(other.parameters(), 0.1))
    with pytest.raises(ValueError, match="cannot resume"):
        going_on.resume_or_load("", resume=True)


def test_names_in_the_table_cannot_move_the_cursor() -> None:
    names = ClassNames(("a\x1b[31m\nred\x07",), ())
    assert r"a\x1b[31m\nred\x07" in changes_table(compare_classes(names, ClassNames(("b",), ())))
