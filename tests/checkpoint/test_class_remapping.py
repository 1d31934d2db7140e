"""Rows of heads follow the names of their classes."""

from __future__ import annotations

import pytest
import torch

from psf.checkpoint import ClassNames, changes_table, compare_classes, remap_classes
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
    remapped = remap_classes(old, fresh, compare_classes(FOUND, WANTED))
    with_rows = {"things": ["location_decoder.class_heads.1.bias"], "stuff": ["stuff_content.weight"]}
    with_rows["stuff"].append("stuff_position.weight")
    if recipe == "paper":
        with_rows["things"].append("thing_classifier.layers.0.weight")
    for kind, names in with_rows.items():
        for name in names:
            rows = [fresh[name][i] if j is None else old[name][j] for i, j in enumerate(SOURCES[kind])]
            assert torch.equal(remapped[name], torch.stack(rows)), name
    assert {name: x.shape for name, x in remapped.items()} == {name: x.shape for name, x in fresh.items()}
    changed = {name for name, x in remapped.items() if x is not old[name]}
    heads = ("location_decoder.class_heads.", "location_decoder.proposals.class_head.", "thing_classifier.")
    starts = (*heads, "stuff_content.", "stuff_position.")
    assert changed == {name for name in old if name.startswith(starts)}


def test_rows_of_another_size_stay_as_they_are():
    changes = compare_classes(FOUND, WANTED)
    fresh = {"stuff_content.weight": torch.zeros(5, 8)}
    for old in (torch.ones(4, 6), torch.ones(3, 8)):
        assert remap_classes({"stuff_content.weight": old}, fresh, changes)["stuff_content.weight"] is old


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
