"""Detectron2's TracingAdapter: a trace gives the model's own results for other images of its size, and no others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.export import TracingAdapter

from psf import PanopticSegFormer
from psf.errors import UserError
from psf.structures import Candidates
from tests.models import RECIPES, tiny_model

pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch.jit.trace, in newer versions of torch
]
ALL_CANDIDATES = {f"POST_PROCESSOR.{kind}.T_CNF": 0.05 for kind in ("THINGS", "STUFF")}


def photo(height: int, width: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed)).float()


def trace(model: PanopticSegFormer, image: torch.Tensor, **options: Any) -> tuple[TracingAdapter, Any]:
    adapter = TracingAdapter(model, [{"image": image}], **options)
    return adapter, torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)


@pytest.mark.parametrize("recipe", RECIPES)
def test_instances_and_semantic_scores(recipe: str):
    model = tiny_model({**RECIPES[recipe], **ALL_CANDIDATES, "TEST.PANOPTIC_ON": False}).eval()
    adapter, traced = trace(model, photo(60, 90, 0))
    for seed in (0, 1, 2):
        image = photo(60, 90, seed)
        with torch.no_grad():
            [expected] = model([{"image": image}])
            [found] = adapter.outputs_schema(traced(image))
        torch.testing.assert_close(found["sem_seg"], expected["sem_seg"])
        for name, value in expected["instances"].get_fields().items():
            other = found["instances"].get(name)
            if name == "pred_boxes":
                value, other = value.tensor, other.tensor
            torch.testing.assert_close(other, value)
    for size in ((64, 90), (60, 96), (90, 60), (30, 45)):
        with pytest.raises(RuntimeError, match="expanded size"):
            traced(photo(*size, 0))


def by_brightness(images: torch.Tensor, padding_mask: torch.Tensor | None) -> list[Candidates]:
    """A candidate for each channel: the pixels above the channel's mean, with a probability by this mean."""
    means = images[0].mean((1, 2))
    masks = (images[0] > means[:, None, None]).float()
    return [Candidates(means.sigmoid(), torch.arange(3), torch.ones(3, dtype=torch.bool), masks, None)]


def test_panoptic_map(monkeypatch: pytest.MonkeyPatch):
    """The segments' numbers are no tensors, which TracingAdapter leaves out by request alone."""
    switches = {"TEST.INSTANCE_ON": False, "TEST.SEMANTIC_ON": False}
    model = tiny_model({**ALL_CANDIDATES, **switches, "POST_PROCESSOR.THINGS.T_KEEP": 0.4}).eval()
    monkeypatch.setattr(model, "candidates", by_brightness, raising=False)
    with pytest.raises(ValueError, match="cannot flatten to tensors"):
        trace(model, photo(60, 90, 0))
    _, traced = trace(model, photo(60, 90, 0), allow_non_tensor=True)
    counts = set()
    for seed in (0, 1, 2):
        image = photo(60, 90, seed)
        with torch.no_grad():
            [expected] = model([{"image": image}])
            [panoptic_seg] = traced(image)
        assert torch.equal(panoptic_seg, expected["panoptic_seg"][0])
        counts.add(tuple(panoptic_seg.flatten().bincount().tolist()))
    assert len(counts) == 3  # the results differ


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"TEST.TILES.SIZE": 64}, r"set MODEL\.PSF\.TEST\.TILES\.SIZE to 0"),
        ({"POST_PROCESSOR.NAME": "PixelArgmax"}, "NAME to MaskWiseMerging"),
        ({"QUERIES": "joint"}, r'as MODEL\.PSF\.QUERIES is "joint"'),
        ({"TEST.INSTANCE.NMS_THRESH": 0.7}, r"set MODEL\.PSF\.TEST\.INSTANCE\.NMS_THRESH to 1\.0"),
    ],
)
def test_refuses_what_would_be_repeated(keys: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        trace(tiny_model(keys).eval(), photo(60, 90, 0), allow_non_tensor=True)


def test_refuses_an_output_size_in_tensors():
    model = tiny_model({"TEST.PANOPTIC_ON": False}).eval()
    x = {"image": photo(60, 90, 0), "height": torch.tensor(30), "width": torch.tensor(45)}
    adapter = TracingAdapter(model, [x])
    with pytest.raises(UserError, match="set height and width of the input to int"):
        torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
