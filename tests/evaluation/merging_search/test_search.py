"""The search for the numbers of merging."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from hypothesis import example, given, settings
from hypothesis import strategies as st

from psf import add_psf_config
from psf.engine import Trainer
from psf.evaluation import PanopticQualityEvaluator
from psf.evaluation.merging_search import search as tuning
from psf.evaluation.merging_search.cache import cache_image
from psf.evaluation.merging_search.search import Grid, Tuning, cache_dataset, key_value_words, surface_table, tune
from psf.inference import MergingThresholds
from tests.candidates import make_candidates
from tests.mini_set import candidates_by_color, register_mini_set, unregister_mini_set, write_mini_set
from tests.models import tiny_config, tiny_model

START = MergingThresholds(alpha=1.0, beta=2.0, t_cnf=0.25, t_keep=0.6)


@pytest.fixture
def mini(tmp_path: Path) -> Iterator[str]:
    write_mini_set(tmp_path / "mini")
    yield register_mini_set(tmp_path / "mini")
    unregister_mini_set()


def two_squares():
    """One true thing, found with probability 0.2 and a full mean; and a false one of 0.1."""
    gt = np.zeros((4, 8), dtype=np.uint32)
    gt[:, :4] = 9
    masks = torch.zeros(2, 4, 8, dtype=torch.bool)
    masks[0, :, :4], masks[1, :, 4:] = True, True
    scores, means = torch.tensor([0.2, 0.1]), torch.ones(2)
    segments = [{"id": 9, "category_id": 3}, {"id": 8, "category_id": 3}]
    is_thing = torch.tensor([True, True])
    return cache_image(scores, means, masks, is_thing, [3, 3], gt + 8 * (gt == 0).astype(np.uint32), segments)


def test_finds_the_threshold():
    """The ground truth: 9 is found, 8 has another mask. T_CNF 0.15: TP 1, FN 1, PQ 1 / 1.5; 0.05: both are found."""
    grid = Grid((1.0,), (2.0,), (0.05, 0.15, 0.3), (0.6,))
    found = tune([two_squares()], {3: True}, START, START, grid)
    assert (found.pq_at_start, found.pq) == (0.0, 100.0)
    assert found.things == START._replace(t_cnf=0.05) and found.stuff == START  # there is no stuff: left alone
    assert {surface.kind for surface in found.surfaces} == {"things"}
    surface = found.surfaces[0]
    assert surface.names == ("t_cnf", "t_keep") and surface.rows == (0.05, 0.15, 0.25, 0.3)
    assert [line[0] for line in surface.pq] == pytest.approx([100, 100 / 1.5, 0, 0])
    assert "| 0.05" in surface_table(surface) and "**100.00**" in surface_table(surface)


def test_of_equals_the_nearest():
    grid = Grid((0.5, 1.0), (1.0, 2.0, 3.0), (0.01, 0.04), (0.1, 0.6))
    found = tune([two_squares()], {3: True}, START, START, grid)
    assert found.pq == 100 and found.things == START._replace(t_cnf=0.04)


def test_of_near_equals_the_lower_threshold():
    """0.01 and 0.04 find both, 0.15 one: PQ 100, 100 and 66.7."""
    grid = Grid((1.0,), (2.0,), (0.01, 0.04, 0.15), (0.6,))
    for tolerance, t_cnf in ((0.0, 0.04), (1.0, 0.01)):
        assert tune([two_squares()], {3: True}, START, START, grid, tolerance).things == START._replace(t_cnf=t_cnf)
    narrow = grid._replace(t_cnf=(0.04, 0.15))
    assert tune([two_squares()], {3: True}, START._replace(t_cnf=0.15), START, narrow, 50.0).things.t_cnf == 0.04


def test_words():
    found = tune([two_squares()], {3: True}, START, START, Grid((1.0,), (2.0,), (0.05,), (0.6,)))
    words = key_value_words(found)
    cfg = tiny_config()
    cfg.merge_from_list(words)
    node = cfg.MODEL.PSF.POST_PROCESSOR
    assert (node.THINGS.T_CNF, node.STUFF.T_CNF, node.THINGS.BETA) == (0.05, 0.25, 2.0)


numbers = st.builds(MergingThresholds, *[st.floats(0, allow_infinity=False)] * 4)


@given(things=numbers, stuff=numbers)
@settings(deadline=None)
@example(things=START._replace(t_cnf=1e-05, alpha=1.23456789, beta=1e22), stuff=START._replace(t_cnf=0))
def test_words_are_read_as_the_same_numbers(things: MergingThresholds, stuff: MergingThresholds):
    words = key_value_words(Tuning(things, stuff, 0.0, 0.0, True, []))
    cfg = get_cfg()
    add_psf_config(cfg)
    cfg.merge_from_list(shlex.split(shlex.join(words)))
    for name, kind in (("THINGS", things), ("STUFF", stuff)):
        node = cfg.MODEL.PSF.POST_PROCESSOR[name]
        assert kind == (node.ALPHA, node.BETA, node.T_CNF, node.T_KEEP)


def test_says_whether_the_search_settled(monkeypatch: pytest.MonkeyPatch):
    """The first round finds something better, the second one nothing."""
    grid = Grid((1.0,), (2.0,), (0.05, 0.15, 0.3), (0.6,))
    assert tune([two_squares()], {3: True}, START, START, grid).is_settled
    monkeypatch.setattr(tuning, "MAX_ROUNDS", 1)
    found = tune([two_squares()], {3: True}, START, START, grid)
    assert found.pq == 100 and not found.is_settled


@pytest.mark.parametrize("extra_pixels", [0.0, 1.0])
def test_is_the_models_own_quality(mini: str, monkeypatch: pytest.MonkeyPatch, extra_pixels: float):
    """What the search says of the config's numbers is what an evaluation says; and so of those that it chooses.

    The classes have a probability of 0.9, below the T_CNF of the config: it finds nothing, a lower one all classes.
    """
    numbers = {"NUM_THING_CLASSES": -1, "NUM_STUFF_CLASSES": -1, "POST_PROCESSOR.EXTRA_PIXELS": extra_pixels}
    numbers |= {f"POST_PROCESSOR.{kind}.T_CNF": 0.95 for kind in ("THINGS", "STUFF")}
    more = {"DATASETS__TEST": (mini,), "INPUT__MIN_SIZE_TEST": 32, "DATALOADER__NUM_WORKERS": 0}
    cfg = tiny_config(numbers, **more)
    model = tiny_model(numbers, **more).eval()
    monkeypatch.setattr(model, "candidates", partial(candidates_by_color, model), raising=False)
    cached = cache_dataset(model, Trainer.build_test_loader(cfg, mini), mini)
    kinds = {3: True, 5: True, 7: False, 12: False, 9: False}
    processor = model.post_processor
    grid = Grid((1.0,), (1.0, 2.0), (0.1, 0.3), (0.3, 0.6))
    found = tune(cached, kinds, processor.things, processor.stuff, grid)
    assert found.pq_at_start == 0 and 30 < found.pq < 100 and found.things.t_cnf < 0.9
    for things, stuff, pq in (
        (processor.things, processor.stuff, found.pq_at_start),
        (found.things, found.stuff, found.pq),
    ):
        processor.things, processor.stuff = things, stuff
        evaluator = PanopticQualityEvaluator(mini)
        with torch.no_grad():
            for batch in Trainer.build_test_loader(cfg, mini):
                evaluator.process(batch, model(batch))
        assert evaluator.evaluate()["panoptic_seg"]["PQ"] == pytest.approx(pq, abs=1e-9)


def test_weak_classes_are_cached_for_any_exponent():
    """Mean scores of 1, T_CNF 0.3: a probability of 0.1 reaches it with ALPHA 0.5 (0.32), but not with ALPHA 2 (0.01).

    With 0.05 no ALPHA is enough (0.22). A score of 0.5 reaches 0.3 with BETA 1 alone, one of 2 with any.
    """
    grid = Grid((0.5, 1.0, 2.0), (1.0, 3.0), (0.3, 0.4), (0.6,))
    candidates = make_candidates([0.1, 0.05, 1.0, 1.0, 1.0], torch.tensor([1.0, 1.0, 0.5, 2.0, 0.29])[:, None, None])
    assert tuning._can_be_painted(candidates, grid, 0.25).tolist() == [True, False, True, True, False]
    assert not tuning._can_be_painted(candidates, grid, 0.6)[2]  # no pixel is above the mask threshold


def test_refuses(mini: str):
    numbers = {"NUM_THING_CLASSES": 2, "NUM_STUFF_CLASSES": 3}
    with pytest.raises(ValueError, match=r"POST_PROCESSOR\.NAME is 'PixelArgmax'"):
        cache_dataset(tiny_model({**numbers, "POST_PROCESSOR.NAME": "PixelArgmax"}), [], mini)
    with pytest.raises(ValueError, match=r'MODEL\.PSF\.QUERIES is "joint"'):
        cache_dataset(tiny_model({**numbers, "QUERIES": "joint"}), [], mini)
    cfg = tiny_config({}, DATASETS__TEST=(mini,), INPUT__MIN_SIZE_TEST=32, DATALOADER__NUM_WORKERS=0)
    model = tiny_model({"NUM_THING_CLASSES": -1, "NUM_STUFF_CLASSES": -1}, DATASETS__TEST=(mini,))
    with pytest.raises(ValueError, match="1 images take more than 100 bytes"):
        cache_dataset(model, Trainer.build_test_loader(cfg, mini), mini, max_bytes=100)


def test_fixed_numbers_are_not_searched():
    """0.01 finds both squares, 0.15 one; the other kind's numbers may be fixed, too."""
    grid = Grid((1.0,), (2.0,), (0.01, 0.15), (0.6,))
    start = START._replace(t_cnf=0.15)
    found = tune([two_squares()], {3: True}, start, start, grid, fixed={"things": {"t_cnf"}, "stuff": {"alpha"}})
    assert found.things == start and found.pq < 100
    assert tune([two_squares()], {3: True}, start, start, grid).pq == 100
