"""Thing queries of a checkpoint for a model with another number of them: by hand, and as the checkpointer does it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from psf.checkpoint import adapt_query_count
from psf.engine import Checkpointer
from tests.models import tiny_model

NAME = "location_decoder.content.weight"


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
