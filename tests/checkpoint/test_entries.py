"""Names of classes from metadata and checkpoints, and whether two datasets have the same classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from detectron2.data import MetadataCatalog

from psf.checkpoint import ClassNames, check_same_classes, class_names_from_config, compare_classes
from psf.data import panoptic_metadata
from tests.mini_set import CATEGORIES
from tests.models import tiny_config

Register = Callable[..., str]


@pytest.fixture
def dataset() -> Iterator[Register]:
    """Metadata of these categories: dataset("name", CATEGORIES); gone after the test."""
    names = []

    def add(name: str, categories: list[dict]) -> str:
        names.append(f"psf_test_{name}")
        MetadataCatalog.get(names[-1]).set(**panoptic_metadata(categories))
        return names[-1]

    yield add
    for name in names:
        MetadataCatalog.remove(name)


def test_in_the_order_of_the_heads(dataset: Register):
    name = dataset("mini", CATEGORIES)
    cfg = tiny_config({"NUM_THING_CLASSES": -1, "NUM_STUFF_CLASSES": -1}, DATASETS__TEST=(name,))
    names = class_names_from_config(cfg)
    assert names == (("ball", "box"), ("sky", "ground", "cloud"))
    cfg.MODEL.PSF.NUM_STUFF_CLASSES = 0  # the model without stuff
    assert class_names_from_config(cfg) == (("ball", "box"), ())
    cfg.MODEL.PSF.NUM_STUFF_CLASSES, cfg.MODEL.PSF.QUERIES = -1, "joint"  # one head for all of them
    assert class_names_from_config(cfg) == (("ball", "box", "sky", "ground", "cloud"), ())
    assert ClassNames.of_checkpoint({"model": {}, **names.as_entry()}) == names


def test_detectron2s_own_sets():
    names = ClassNames.of_dataset("coco_2017_val_panoptic")
    assert (len(names.things), len(names.stuff)) == (80, 53)
    assert (names.things[0], names.stuff[-1]) == ("person", "rug-merged")
    separated = ClassNames.of_dataset("coco_2017_val_panoptic_separated")  # whose names are shorter: "rug"
    assert (separated.things, separated.stuff[-1]) == (names.things, "rug")
    assert all(change.is_identity for change in compare_classes(names, separated).values())


def test_unknown_names(dataset: Register):
    assert class_names_from_config(tiny_config()) is None  # no dataset
    assert ClassNames.of_checkpoint({"model": {}}) is None
    name = dataset("nameless", CATEGORIES)
    MetadataCatalog.remove(name)
    MetadataCatalog.get(name).set(thing_dataset_id_to_contiguous_id={1: 0})
    assert ClassNames.of_dataset(name) is None


class TestSameClasses:
    def test_the_same(self, dataset: Register):
        """Ids in the files may differ, and one of the kinds may be missing."""
        renumbered = [{**category, "id": 100 + category["id"]} for category in CATEGORIES]
        check_same_classes([dataset("a", CATEGORIES), "psf_test_unknown", dataset("b", renumbered)])
        MetadataCatalog.remove("psf_test_unknown")
        check_same_classes(["coco_2017_train_panoptic", "coco_2017_val_panoptic", "coco_2017_val"])

    @pytest.mark.parametrize(
        "other",
        [CATEGORIES[::-1], CATEGORIES[:-1], [CATEGORIES[1], CATEGORIES[0], *CATEGORIES[2:]]],
        ids=["another order", "fewer", "the same order of each kind, at other positions"],
    )
    def test_others_are_refused(self, dataset: Register, other: list[dict]):
        names = [dataset("a", CATEGORIES), dataset("b", other)]
        with pytest.raises(ValueError, match=r'of "psf_test_b" are not those of "psf_test_a", for which the model'):
            check_same_classes(names)
