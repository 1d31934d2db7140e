"""Two processes on the CPU, an image each, learn what one process learns from both images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from psf import PanopticSegFormer
from tests.models import RECIPES, RELEASED, gradients, make_input, tiny_model

MODELS: dict[str, dict[str, Any]] = {
    **RECIPES,
    "share of the segments": {"LOSS.BALANCE": "share"},
    "two queries per thing": {**RELEASED, "MATCHER.QUERIES_PER_THING": 2},
}
# Numbers of things and of stuff segments in the image of each process.
IMAGES = {
    "one without things": [(3, 1), (0, 4)],
    "one without anything": [(2, 3), (0, 0)],
    "no things at all": [(0, 1), (0, 3)],
}
CASES = [(name, images) for name in MODELS for images in IMAGES]

Step = tuple[dict[str, Tensor], dict[str, Tensor]]


def model_of(name: str) -> PanopticSegFormer:
    """In float64; both images are padded to 64 x 96, as GroupNorm sees the padding."""
    return tiny_model({**MODELS[name], "SIZE_DIVISIBILITY": 32}).double()


def inputs_of(images: str) -> list[dict[str, Any]]:
    sizes = [(64, 70), (50, 96)]
    return [
        make_input(*size, things=things, stuff=stuff, seed=i)
        for i, (size, (things, stuff)) in enumerate(zip(sizes, IMAGES[images], strict=True))
    ]


def train(rank: int, folder: str) -> None:
    """One process: every case, and what the first one finds, to a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = []
    for name, images in CASES:
        model = DistributedDataParallel(model_of(name))
        losses, mean_gradients = gradients(model, [inputs_of(images)[rank]])
        names = list(losses)
        means = torch.stack([losses[key].detach() for key in names]) / 2
        dist.all_reduce(means)
        own = {key.removeprefix("module."): value for key, value in mean_gradients.items()}
        found.append((dict(zip(names, means, strict=True)), own))
    if rank == 0:
        torch.save(found, Path(folder, "found.pth"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Step]:
    """Of each case: the mean of the loss terms over both processes, and the gradients."""
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(train, args=(str(folder),), nprocs=2)
    return dict(zip(CASES, torch.load(folder / "found.pth", weights_only=True), strict=True))


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("name", MODELS)
def test_mean_over_processes_is_the_batch(name: str, images: str, two_processes: dict[tuple[str, str], Step]):
    mean_losses, mean_gradients = two_processes[name, images]
    losses, own = gradients(model_of(name), inputs_of(images))
    assert mean_losses.keys() == losses.keys() and mean_gradients.keys() == own.keys()
    for key, value in losses.items():
        torch.testing.assert_close(mean_losses[key], value.detach(), rtol=1e-5, atol=1e-7, msg=key)
    # The model runs in float64, the losses in float32: hence the tolerance.
    largest = max(gradient.abs().max() for gradient in own.values())
    for key, gradient in own.items():
        torch.testing.assert_close(mean_gradients[key], gradient, rtol=1e-4, atol=1e-7 * float(largest), msg=key)
