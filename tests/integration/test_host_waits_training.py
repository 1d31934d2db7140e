"""How often one training step waits for the device: a bound for each recipe that neither images nor layers raise."""

from __future__ import annotations

import os
import warnings
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch.nn.parallel import DistributedDataParallel

from psf.engine import build_optimizer
from psf.engine.hooks import CheckpointHook, StopSignals
from psf.engine.train_step import TrainStep
from psf.errors import UserError
from psf.ops.transfer import kept_table
from tests.forked_training import Running, fork
from tests.host_waits import count_host_waits
from tests.models import RECIPES, make_input, tiny_config, tiny_model

# Which segments have a pixel (inputs without boxes); the costs; with two matchings the second costs; loss and gradients
# are finite.
BOUNDS = {"paper": 3, "released": 4, "small": 4}
CLIPPING = {"SOLVER__CLIP_GRADIENTS__ENABLED": True, "SOLVER__CLIP_GRADIENTS__CLIP_TYPE": "full_model"}


def batch(num_images: int, things: int = 3) -> list[dict[str, Any]]:
    return [make_input(64 - 16 * b, 96, things=things, stuff=2, seed=b) for b in range(num_images)]


def make_step(
    recipe: str, inputs: list[dict[str, Any]], *, layers: int = 2, device: str = "cpu", msda: str = "auto"
) -> TrainStep:
    keys = {**RECIPES[recipe], "LOCATION_DECODER.NUM_LAYERS": layers, "MSDA": msda}
    model = tiny_model(keys).to(device)
    optimizer = build_optimizer(tiny_config(keys, **CLIPPING), model)
    return TrainStep(model, [inputs] * 4, optimizer, dtype=torch.bfloat16, device_type=device)


def waits_of(step: TrainStep) -> count_host_waits:
    """Of the second step: the first one makes tables that are kept."""
    with EventStorage():
        for step.iter in range(2):
            with count_host_waits() as waits:
                step.run_step()
        step.write_metrics_so_far()
    return waits


@pytest.mark.parametrize(("num_images", "layers"), [(1, 2), (2, 2), (1, 4), (2, 4)])
@pytest.mark.parametrize("recipe", RECIPES)
def test_bound(recipe: str, num_images: int, layers: int):
    waits = waits_of(make_step(recipe, batch(num_images), layers=layers))
    assert waits.total == BOUNDS[recipe] <= 6, str(waits)


@pytest.mark.parametrize("recipe", RECIPES)
def test_deformable_attention_adds_none(recipe: str):
    """With `bag`, the only implementation on a GPU with deterministic gradients; forward and backward."""
    waits = waits_of(make_step(recipe, batch(2), msda="bag"))
    assert waits.total == BOUNDS[recipe], str(waits)


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_things(recipe: str):
    waits = waits_of(make_step(recipe, batch(2, things=0)))
    assert waits.total <= BOUNDS[recipe], str(waits)


def test_a_mapper_with_boxes_saves_one():
    inputs = batch(2)
    for x in inputs:
        x["panoptic_boxes_xyxy_px"] = torch.tensor([[0, 0, 8, 8]] * len(x["segments_info"]), dtype=torch.int32)
    assert waits_of(make_step("paper", inputs)).total == BOUNDS["paper"] - 1


def test_float_images_are_checked_together():
    inputs = batch(2)
    for x in inputs:
        x["image"] = x["image"].float()
    step = make_step("paper", inputs)
    assert waits_of(step).total == BOUNDS["paper"] + 1
    inputs[1]["image"][0, 3, 3] = torch.nan
    inputs[0]["file_name"] = inputs[1]["file_name"] = "same.png"
    with pytest.raises(UserError, match=r"image same\.png has NaN or infinite values"):
        step.model(inputs)


def test_the_first_batch_of_a_shape_waits_no_more():
    """Its tables of level sizes are copied to the device, which does not wait."""
    kept_table.cache_clear()
    model = tiny_model(RECIPES["small"]).train()
    with count_host_waits() as waits:
        model(batch(2))
    assert waits.total == BOUNDS["small"] - 1, str(waits)  # without the check of loss and gradients
    assert any("transfer.py" in line for line in waits.copies)


def count_in_one_of_two_processes(rank: int, recipe: str, folder: Path) -> None:
    """Write the waits of a step, and of a step with the hook that asks for signals and the time."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    comm.create_local_process_group(2)
    step = make_step(recipe, batch(2))
    step.model = DistributedDataParallel(step.model, find_unused_parameters=True)
    never = {"period": 0, "seconds": 0.0, "eval_period": 0, "keep": 0, "keep_every": 0}
    hook = CheckpointHook(StopSignals(), device_type="cpu", **never)
    hook.trainer = SimpleNamespace(iter=0, max_iter=9)
    with EventStorage():
        for step.iter in range(2):
            with count_host_waits() as waits:
                step.run_step()
            of_step = waits.total
            with waits:
                hook.after_step()
    (folder / f"waits_{rank}").write_text(f"{of_step} {waits.total}\n{waits}")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked, to save their imports")
@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_several_processes_add_one(recipe: str, tmp_path: Path):
    processes = [
        fork(lambda rank=rank: count_in_one_of_two_processes(rank, recipe, tmp_path), tmp_path / f"{rank}.txt")
        for rank in range(2)
    ]
    codes = Running(processes).wait(120.0)
    assert codes == [0, 0], "".join((tmp_path / f"{rank}.txt").read_text() for rank in range(2))
    for rank in range(2):
        found = (tmp_path / f"waits_{rank}").read_text()
        assert found.splitlines()[0] == f"{BOUNDS[recipe]} {BOUNDS[recipe] + 1}", found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("msda", ["auto", "bag", "triton"])
@pytest.mark.parametrize(("num_images", "layers"), [(1, 2), (2, 4)])
@pytest.mark.parametrize("recipe", RECIPES)
def test_bound_on_a_gpu(recipe: str, num_images: int, layers: int, msda: str):
    """torch's own count: a warning for each wait."""
    step = make_step(recipe, batch(num_images), layers=layers, device="cuda", msda=msda)
    with EventStorage():
        for step.iter in range(3):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    step.run_step()
                finally:
                    torch.cuda.set_sync_debug_mode("default")
        step.write_metrics_so_far()
    messages = [str(one.message) for one in caught if "called a synchronizing" in str(one.message)]
    assert len(messages) <= BOUNDS[recipe], "\n".join(f"{one.filename}:{one.lineno}" for one in caught)
