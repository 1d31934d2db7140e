"""The tuples that parts exchange, and the classes of a dataset."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import Metadata, MetadataCatalog

from psf import add_psf_config
from psf.data import panoptic_metadata
from psf.meta_arch import classes_from_config
from psf.structures import LocatedQueries, PanopticClasses
from tests.candidates import make_candidates
from tests.features import random_features
from tests.mini_set import CATEGORIES


def test_finest_levels_alone():
    features = random_features([(4, 6), (2, 3), (1, 2)], own_shares=[(1.0, 1.0), (0.5, 0.5)])
    finest = features.finest(2)
    assert finest.spatial_shapes == [(4, 6), (2, 3)]
    assert torch.equal(finest.tokens, features.tokens[:, :30]) and torch.equal(
        finest.pos_embed, features.pos_embed[:, :30]
    )
    assert torch.equal(finest.padding_mask, features.padding_mask[:, :30])
    assert torch.equal(finest.valid_ratios, features.valid_ratios[:, :2])
    assert random_features([(2, 2), (1, 1)]).finest(1).padding_mask is None


def test_picked_queries():
    queries, rows = torch.arange(12.0).view(2, 3, 2), torch.tensor([[2, 0], [1, 1]])
    picked = LocatedQueries(queries, -queries, []).pick(rows)
    assert picked.queries.tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]
    assert torch.equal(picked.query_pos, -picked.queries)
    nothing = LocatedQueries(queries, None, []).pick(rows)
    assert nothing.query_pos is None and nothing.boxes_cxcywh_norm is None
    boxes = torch.rand(2, 3, 4)
    picked = LocatedQueries(queries, None, [], boxes).pick(rows).boxes_cxcywh_norm
    assert torch.equal(picked, torch.stack((boxes[0, [2, 0]], boxes[1, [1, 1]])))


def test_selected_candidates():
    candidates = make_candidates([0.1, 0.2, 0.3], torch.rand(3, 2, 2), things=[True, False, True], classes=[5, 6, 7])
    boxes = torch.rand(3, 4)
    for index in (torch.tensor([2, 0]), torch.tensor([True, False, True])):
        chosen = candidates._replace(boxes_cxcywh_norm=boxes).select(index)
        rows = index if index.dtype == torch.long else torch.tensor([0, 2])
        assert chosen.class_indices.tolist() == [5 + int(i) for i in rows]
        assert torch.equal(chosen.mask_scores, candidates.mask_scores[rows])
        assert torch.equal(chosen.boxes_cxcywh_norm, boxes[rows])
    assert candidates.select(torch.tensor([0])).boxes_cxcywh_norm is None


@pytest.fixture
def named() -> Iterator[str]:
    """A name in whose metadata stuff comes first and the kinds alternate."""
    name = "psf_test_classes"
    MetadataCatalog.get(name).set(**panoptic_metadata(CATEGORIES))
    yield name
    MetadataCatalog.remove(name)


def config(*, train: tuple[str, ...] = (), test: tuple[str, ...] = (), things: int = -1, stuff: int = -1) -> CfgNode:
    cfg = get_cfg()
    add_psf_config(cfg)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = train, test
    cfg.MODEL.PSF.NUM_THING_CLASSES, cfg.MODEL.PSF.NUM_STUFF_CLASSES = things, stuff
    return cfg


class TestMetadata:
    def test_any_order(self, named: str):
        assert PanopticClasses.from_metadata(MetadataCatalog.get(named)) == ((1, 3), (0, 2, 4))

    def test_coco(self):
        classes = PanopticClasses.from_metadata(MetadataCatalog.get("coco_2017_val_panoptic"))
        assert classes == (tuple(range(80)), tuple(range(80, 133)))
        assert not classes.is_separated
        assert classes.semantic_channels == (*classes, 133)

    def test_separated_coco(self):
        classes = PanopticClasses.from_metadata(MetadataCatalog.get("coco_2017_val_panoptic_separated"))
        assert classes == (tuple(range(80)), tuple(range(1, 54)))  # 0 is "things"
        assert classes.is_separated
        assert classes.semantic_channels == ((0,) * 80, tuple(range(1, 54)), 54)

    def test_things_alone(self):
        classes = PanopticClasses.from_metadata(MetadataCatalog.get("coco_2017_val"))
        assert classes == (tuple(range(80)), ())
        assert classes.semantic_channels == (tuple(range(80)), (), 80)

    def test_stuff_alone(self):
        classes = PanopticClasses.from_metadata(Metadata(stuff_dataset_id_to_contiguous_id={9: 1, 4: 0}))
        assert classes == ((), (0, 1))
        assert classes.semantic_channels == ((), (0, 1), 2)

    def test_none(self):
        assert PanopticClasses.from_metadata(Metadata()) is None


class TestConfig:
    @pytest.mark.parametrize("where", ["train", "test"])
    def test_counted_in_the_metadata(self, named: str, where: str):
        assert classes_from_config(config(**{where: (named,)})) == ((1, 3), (0, 2, 4))

    def test_numbers_that_agree(self, named: str):
        assert classes_from_config(config(train=(named,), things=2, stuff=3)) == ((1, 3), (0, 2, 4))

    @pytest.mark.parametrize(
        ("counts", "key", "found"),
        [({"things": 5}, "NUM_THING_CLASSES is 5", "2"), ({"stuff": 2}, "NUM_STUFF_CLASSES is 2", "3")],
    )
    def test_contradiction_names_both(self, named: str, counts: dict[str, int], key: str, found: str):
        with pytest.raises(ValueError, match=rf'MODEL\.PSF\.{key}, but dataset "{named}" has {found} such classes'):
            classes_from_config(config(train=(named,), **counts))

    def test_training_set_before_test_set(self, named: str):
        cfg = config(train=(named,), test=("coco_2017_val_panoptic",))
        assert classes_from_config(cfg) == ((1, 3), (0, 2, 4))

    def test_sets_without_classes_are_passed_over(self, named: str):
        cfg = config(train=("psf_test_unknown_set",), test=(named,))
        assert classes_from_config(cfg) == ((1, 3), (0, 2, 4))
        MetadataCatalog.remove("psf_test_unknown_set")

    def test_without_datasets_things_come_first(self):
        assert classes_from_config(config(things=2, stuff=3)) == ((0, 1), (2, 3, 4))
        assert classes_from_config(config(things=0, stuff=2)) == ((), (0, 1))
        assert classes_from_config(config(things=2, stuff=0)) == ((0, 1), ())

    def test_stuff_left_out(self, named: str):
        """NUM_STUFF_CLASSES 0: an instance segmentation model, whatever the metadata say."""
        assert classes_from_config(config(train=(named,), stuff=0)) == ((1, 3), ())
        assert classes_from_config(config(train=(named,), things=2, stuff=0)) == ((1, 3), ())

    def test_nothing_left(self):
        MetadataCatalog.get("psf_test_stuff_alone").set(stuff_dataset_id_to_contiguous_id={4: 0})
        with pytest.raises(ValueError, match=r'NUM_STUFF_CLASSES is 0 .* "psf_test_stuff_alone" has no things either'):
            classes_from_config(config(train=("psf_test_stuff_alone",), stuff=0))
        MetadataCatalog.remove("psf_test_stuff_alone")

    @pytest.mark.parametrize("counts", [(-1, -1), (3, -1), (-1, 3), (0, 0)])
    def test_nobody_knows(self, counts: tuple[int, int]):
        with pytest.raises(ValueError, match=r"classes are unknown.*NUM_THING_CLASSES and NUM_STUFF_CLASSES are"):
            classes_from_config(config(things=counts[0], stuff=counts[1]))
