"""Scalars and warnings about mask heads, from counts that a stand-in model makes up, and in a real training."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.events import EventStorage

from psf.engine import Trainer
from psf.engine.hooks.mask_health import MaskHealthHook
from psf.losses import HeadCounts, MaskHealth
from tests.models import RECIPES, tiny_config

PIXELS = 10


def counts(zero: list[int], threshold: list[int]) -> HeadCounts:
    return HeadCounts(torch.tensor(zero), torch.tensor(threshold), PIXELS)


def train(
    health: Callable[[int], MaskHealth | None], num_iterations: int, caplog: pytest.LogCaptureFixture, activation: str
) -> tuple[dict[str, float], list[str]]:
    """Run the hook alone; returns the scalars of the last iteration, and the warnings with their iteration before."""
    model = SimpleNamespace(mask_health=None)
    hook = MaskHealthHook(model, activation=activation, relu_gradient="plain", mask_threshold=0.5)
    warnings = []
    with EventStorage() as storage, caplog.at_level(logging.WARNING):
        hook.trainer = SimpleNamespace(storage=storage, max_iter=num_iterations)
        for iteration in range(num_iterations):
            hook.trainer.iter = iteration
            model.mask_health = health(iteration)
            caplog.clear()
            hook.after_step()
            warnings += [f"{iteration + 1}: {record.getMessage()}" for record in caplog.records]
        return {name: value for name, (value, _) in storage.latest().items()}, warnings


def test_scalars_are_shares_over_the_last_twenty_iterations(caplog: pytest.LogCaptureFixture):
    def health(iteration: int) -> MaskHealth:
        alive = counts([8, 4], [iteration % 4, 0])
        return MaskHealth(alive if iteration % 2 else None, counts([1], [1]))

    scalars, warnings = train(health, 40, caplog, "relu")
    # Odd iterations have things: the first head has 1, 3, 1, 3, ... of 10 pixels above the threshold.
    expected = {"things_0": (0.2, 0.8), "things": (0.0, 0.4), "stuff": (0.1, 0.1)}
    assert scalars == pytest.approx(
        {f"mask_health/{name}": one for name, (one, _) in expected.items()}
        | {f"mask_nonzero/{name}": one for name, (_, one) in expected.items()}
    )
    assert not warnings
    scalars, _ = train(health, 3, caplog, "sigmoid")  # the last iteration is read out, too
    assert scalars == pytest.approx({"mask_health/things_0": 0.1, "mask_health/things": 0.0, "mask_health/stuff": 0.1})


def test_a_dead_head_is_named_once(caplog: pytest.LogCaptureFixture):
    """Head 1 of the things never gives anything; the stuff's tail dies after 150 iterations."""

    def health(iteration: int) -> MaskHealth:
        return MaskHealth(counts([1, 0, 5], [0, 0, 0]), counts([1, iteration < 150], [0, 0]))

    _, (first, second) = train(health, 400, caplog, "relu")
    assert first == (
        "100: mask head of layer 1 (things) has been zero for 100 iterations: it gets no gradient and will predict no "
        'masks; set MODEL.PSF.MASK_DECODER.RELU_GRADIENT to "revive" or MASK_ACTIVATION to "sigmoid", or lower '
        "SOLVER.BASE_LR"
    )
    assert second.startswith("260: mask head after the last layer (stuff) has been zero for 100 iterations")


def test_heads_that_die_together_share_a_line(caplog: pytest.LogCaptureFixture):
    _, [only] = train(lambda _: MaskHealth(counts([0, 0], [0, 0]), counts([0], [0])), 200, caplog, "relu")
    assert only.startswith(
        "100: mask heads of layer 0 (things), after the last layer (things), after the last layer (stuff) have been "
        "zero for 100 iterations: they get no gradient"
    )


def test_sigmoid_is_judged_by_the_threshold(caplog: pytest.LogCaptureFixture):
    _, [only] = train(lambda _: MaskHealth(counts([9, 9], [0, 1]), None), 200, caplog, "sigmoid")
    assert only.startswith("100: mask head of layer 0 (things) has had no score above MODEL.PSF.POST_PROCESSOR")
    assert "MASK_THRESHOLD (0.5)" in only and "RELU_GRADIENT" not in only


@pytest.mark.parametrize(("period", "num_dead"), [(1, 100), (2, 200), (5, 500)])
def test_only_iterations_with_something_to_find_count(caplog: pytest.LogCaptureFixture, period: int, num_dead: int):
    """Every `period`-th batch has things."""
    dead = MaskHealth(counts([0], [0]), None)

    def health(iteration: int) -> MaskHealth:
        return dead if iteration % period == 0 else MaskHealth(None, None)

    assert not train(health, num_dead - period, caplog, "relu")[1]
    _, [only] = train(health, num_dead + period, caplog, "relu")
    assert only.startswith(f"{num_dead}: ")


def test_one_mask_in_a_hundred_iterations_is_alive(caplog: pytest.LogCaptureFixture):
    def health(iteration: int) -> MaskHealth:
        return MaskHealth(counts([int(iteration % 100 == 99)], [0]), None)

    assert not train(health, 400, caplog, "relu")[1]


def trainer_of(mini: str, output: Path, recipe: str) -> Trainer:
    """A trainer of a tiny model for three iterations on the mini set."""
    output.mkdir()
    keys = {"NUM_THING_CLASSES": -1, "NUM_STUFF_CLASSES": -1, **RECIPES[recipe]}
    solver = {"MAX_ITER": 3, "IMS_PER_BATCH": 2, "STEPS": (), "WARMUP_ITERS": 0, "AMP__ENABLED": False}
    more = {f"SOLVER__{key}": value for key, value in solver.items()}
    sizes = {"INPUT__MIN_SIZE_TRAIN": (32,), "INPUT__CROP__ENABLED": False, "DATALOADER__NUM_WORKERS": 0}
    return Trainer(
        tiny_config(keys, DATASETS__TRAIN=(mini,), MODEL__WEIGHTS="", OUTPUT_DIR=str(output), SEED=1, **more, **sizes)
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_real_training_writes_the_scalars(mini: str, tmp_path: Path, recipe: str):
    trainer = trainer_of(mini, tmp_path / "output", recipe)
    trainer.train()
    last = json.loads((tmp_path / "output" / "metrics.json").read_text().splitlines()[-1])
    # Two thing layers, three stuff layers, and a tail each.
    names = [*(f"things_{i}" for i in range(2)), "things", *(f"stuff_{i}" for i in range(3)), "stuff"]
    written = {key for key in last if key.startswith("mask_")}
    kinds = ("mask_health", "mask_nonzero") if recipe == "released" else ("mask_health",)
    assert written == {f"{kind}/{name}" for kind in kinds for name in names}
    assert all(0 <= last[key] <= 1 for key in written) and any(last[key] > 0 for key in written)
    assert {f"loss_seg_{name}" for name in names} <= set(last)  # the same names


def test_a_real_training_warns_of_a_dead_head(
    mini: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("psf.engine.hooks.mask_health.PATIENCE", 3)
    trainer = trainer_of(mini, tmp_path / "output", "released")
    with torch.no_grad():
        trainer.model.stuff_decoder.layers[1].mask_head.fuse.bias.fill_(-1000.0)
    with caplog.at_level(logging.WARNING, logger="psf"):
        trainer.train()
    [only] = [record.getMessage() for record in caplog.records if "mask head" in record.getMessage()]
    assert "of layer 1 (stuff)" in only and "been zero for 3 iterations" in only
    assert 'set MODEL.PSF.MASK_DECODER.MASK_ACTIVATION to "sigmoid"' in only  # the gradient is "revive" already
