"""Classes as texts: what comes back is the metadata that they were made of."""

from __future__ import annotations

from typing import Any

import pytest
from detectron2.data import Metadata, MetadataCatalog

from psf.errors import UserError
from psf.structures import ClassEntry, PanopticClasses, list_classes, metadata_of_classes, read_classes

SETS = ["coco_2017_val_panoptic", "coco_2017_val_panoptic_separated", "psf_cityscapes_panoptic_val", "psf_shapes_val"]


@pytest.mark.parametrize("name", SETS)
def test_metadata_come_back(name: str) -> None:
    original = MetadataCatalog.get(name)
    texts = [str(one) for one in list_classes(original)]
    made: dict[str, Any] = metadata_of_classes(read_classes(texts))
    assert PanopticClasses.from_metadata(Metadata(name="x", **made)) == PanopticClasses.from_metadata(original)
    for key in ("thing_classes", "stuff_classes", "thing_colors", "thing_dataset_id_to_contiguous_id"):
        assert made[key] == getattr(original, key), key
    if "separated" not in name:  # there, Detectron2 gives all things together an id and a colour, too
        for key in ("stuff_colors", "stuff_dataset_id_to_contiguous_id"):
            assert made[key] == getattr(original, key), key


def test_names_of_any_kind() -> None:
    for name in ("a b", "thing 0 1 - x", "a: #b, 'c'", "Größe\n2"):
        entry = ClassEntry(False, 3, 70, None, name)
        assert ClassEntry.parse(str(entry)) == entry
    assert str(ClassEntry(True, 0, 1, (220, 20, 60), "person")) == "thing 0 1 dc143c person"


@pytest.mark.parametrize(
    "text",
    ["", "person", "thing 0 1 person", "thing -1 1 - x", "thing 0 1 red x", "thing 65536 1 - x", "other 0 1 - x"],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(
        UserError, match=r"MODEL\.PSF\.CLASSES has .* expected a text such as 'thing 0 1 dc143c person'"
    ):
        read_classes([text])


def test_ids_are_unique() -> None:
    with pytest.raises(
        UserError, match=r"two classes with the same contiguous id: 'thing 0 1 - a' and 'thing 0 2 - b'"
    ):
        read_classes(["thing 0 1 - a", "stuff 0 1 - c", "thing 0 2 - b"])


def test_classes_without_names_are_not_listed() -> None:
    assert list_classes(Metadata(name="x", thing_dataset_id_to_contiguous_id={1: 0})) == []
    assert list_classes(Metadata(name="x")) == []


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["thing 0 1 - a", "stuff 1 1 - a", "thing 2 1 - c"], "the same category id: 'thing 0 1 - a'"),
        (["stuff 0 1 - a", "stuff 2 3 - a"], "the same name: 'stuff 0 1 - a' and 'stuff 2 3 - a'"),
        (["thing 0 1 - " + "n" * 256], "has a name of 256 characters, 'nnn.*at most 255"),
    ],
)
def test_ambiguous_classes_are_refused(texts: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_classes(texts)
