"""NUM_THING_QUERIES -1: the number that the data need, or that a model was trained with."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode

from psf.checkpoint import stored_query_count
from psf.engine import Checkpointer, main, resolve_num_queries, setup
from psf.engine.config.num_queries import queries_for, warn_of_too_few_queries
from psf.meta_arch.build import model_parts
from tests.engine.conftest import ParseArgs
from tests.models import tiny_config, tiny_model

FROM_DATA = ("MODEL.PSF.NUM_THING_QUERIES", "-1")


@pytest.mark.parametrize(
    ("things", "queries"),
    [(0, 100), (66, 100), (67, 150), (100, 150), (101, 200), (200, 300)],  # 1.5 * 66 = 99, 1.5 * 67 = 100.5
)
def test_arithmetic(things: int, queries: int):
    assert queries_for(things) == queries


def config(mini: str, weights: str = "", **psf: object) -> CfgNode:
    return tiny_config({"NUM_THING_QUERIES": -1, **psf}, DATASETS__TRAIN=(mini,), MODEL__WEIGHTS=weights)


def test_training_counts_the_data(mini: str, monkeypatch: pytest.MonkeyPatch):
    """Two things are in an image of the mini set, in another one with a crowd besides; three segments in a third."""
    monkeypatch.setattr("psf.engine.config.num_queries.LEAST", 1)
    monkeypatch.setattr("psf.engine.config.num_queries.MULTIPLE", 1)
    for psf, expected, text in (({}, 3, "up to 2 things"), ({"QUERIES": "joint"}, 6, "up to 4 segments")):
        cfg = config(mini, **psf)
        cfg.freeze()
        found = resolve_num_queries(cfg, is_training=True)
        assert cfg.MODEL.PSF.NUM_THING_QUERIES == found.number == expected and cfg.is_frozen()
        assert text in found.source and "0.png" in found.source and not found.is_guess
    assert resolve_num_queries(cfg, is_training=True) is None  # it is a number now


def test_a_trained_model_has_the_number_of_its_file(mini: str, tmp_path: Path):
    model = tiny_model({"NUM_THING_QUERIES": 6})
    Checkpointer(model, str(tmp_path)).save("rows")
    # As a model without learned queries has it, and as a trainer writes it.
    trainer = {"iteration": 3, "_trainer": {"optimizer": {"state": {}, "param_groups": []}}}
    Checkpointer(model, str(tmp_path), num_thing_queries=7).save("entry", iteration=3, trainer=trainer)
    for name, expected in (("rows", 6), ("entry", 7)):
        cfg = config(mini, str(tmp_path / f"{name}.pth"))
        found = resolve_num_queries(cfg)
        assert expected == cfg.MODEL.PSF.NUM_THING_QUERIES and name in found.source
    other = config(mini, str(tmp_path / "rows.pth"))
    assert resolve_num_queries(other, is_training=True).number == 100  # fine-tuning goes by the data
    going_on = config(mini)
    going_on.OUTPUT_DIR = str(tmp_path)
    assert resolve_num_queries(going_on, is_training=True, resume=True).number == 7


def test_a_file_that_does_not_say(mini: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    torch.save({"model": {"backbone.weight": torch.ones(1)}}, tmp_path / "weights.pth")
    guess = resolve_num_queries(config(mini, str(tmp_path / "weights.pth")))
    assert guess.number == 100 and guess.is_guess
    guess.log()
    assert "does not contain the number that it was trained with" in caplog.records[-1].getMessage()
    assert caplog.records[-1].levelno == logging.WARNING
    (tmp_path / "config.yaml").write_text("MODEL: {PSF: {NUM_THING_QUERIES: 8}}")
    assert resolve_num_queries(config(mini, str(tmp_path / "weights.pth"))).number == 8


def test_mistakes(mini: str):
    cfg = config(mini)
    with pytest.raises(ValueError, match=r"NUM_THING_QUERIES is -1 .*resolve_num_queries"):
        model_parts(cfg)
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN is empty"):
        resolve_num_queries(cfg, is_training=True)
    with pytest.raises(ValueError, match=r"neither segments_info nor annotations"):
        resolve_num_queries(config("psf_shapes_train"), is_training=True)


def test_warns_of_too_few(caplog: pytest.LogCaptureFixture):
    things = [{"category_id": 0, "isthing": True}] * 7 + [{"category_id": 1, "isthing": False}]
    cfg = tiny_config({"NUM_THING_QUERIES": 7})
    warn_of_too_few_queries(cfg, [{"file_name": "a.png", "segments_info": things}])
    assert not caplog.records
    cfg.MODEL.PSF.QUERIES = "joint"
    warn_of_too_few_queries(cfg, [{"file_name": "a.png", "segments_info": things}])
    assert "a.png has 8 segments, but there are only 7 queries" in caplog.text and "to 100" in caplog.text


def test_a_run(mini: str, parse_args: ParseArgs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """config.yaml, log and checkpoint have the number, whatever the data need later."""
    main(parse_args(*FROM_DATA, "SOLVER.MAX_ITER", "1"))
    output = tmp_path / "output"
    assert "NUM_THING_QUERIES: 100\n" in (output / "config.yaml").read_text()
    assert "NUM_THING_QUERIES -1: 100, as images of DATASETS.TRAIN have up to 2" in (output / "log.txt").read_text()
    assert stored_query_count(torch.load(output / "model_final.pth", weights_only=True)) == 100
    monkeypatch.setattr("psf.engine.config.num_queries.LEAST", 50)
    weights = ("MODEL.WEIGHTS", str(output / "model_final.pth"), "OUTPUT_DIR", str(tmp_path / "other"))
    assert setup(parse_args("--eval-only", *FROM_DATA, *weights)).MODEL.PSF.NUM_THING_QUERIES == 100
    assert setup(parse_args(*FROM_DATA, *weights)).MODEL.PSF.NUM_THING_QUERIES == 50
    assert setup(parse_args("--resume", *FROM_DATA)).MODEL.PSF.NUM_THING_QUERIES == 100
