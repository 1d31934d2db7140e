"""The model on a GPU against the CPU; the same tests run on the CPU, too, which keeps them alive where no GPU is."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch

from psf import PanopticSegFormer
from psf.inference import ImageGeometry, mask_wise_merging
from psf.ops import ms_deform_attn, ms_deform_attn_reference
from psf.structures import Candidates
from tests.models import RECIPES, check_result, gradients, make_input, tiny_model
from tests.ops.problems import largest_differences, output_and_gradients, problem

NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICES = ["cpu", pytest.param("cuda", marks=NEEDS_GPU)]
# What a type may change of a loss. float32 differs by the order of sums, and by choices that hang on it.
TOLERANCES = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 2e-2}
ON_EACH_DEVICE_ITS_TYPES = [
    *(("cpu", dtype) for dtype in (torch.float32, torch.bfloat16)),
    *(pytest.param("cuda", dtype, marks=NEEDS_GPU) for dtype in TOLERANCES),
]
SIZES = [(64, 96), (50, 70)]


@pytest.fixture(autouse=True)
def full_float32() -> Iterator[None]:
    """No TF32, which cuDNN takes by default, and convolutions whose gradients are the same in each run."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic
    cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic = False, False, True
    yield
    cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic = before


@pytest.fixture
def inputs() -> list[dict[str, Any]]:
    return [make_input(*size, things=seed, stuff=2, seed=seed) for seed, size in enumerate(SIZES, start=1)]


def model_on(device: str, recipe: str, **keys: Any) -> PanopticSegFormer:
    """The same weights on each device: they are made on the CPU."""
    return tiny_model({**RECIPES[recipe], **keys}).to(device)


def to(device: str, candidates: Candidates) -> Candidates:
    return Candidates(*(x if x is None else x.to(device) for x in candidates))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("device", "dtype"), ON_EACH_DEVICE_ITS_TYPES)
class TestModel:
    def test_losses_are_near_those_of_the_cpu(self, device, dtype, recipe, inputs):
        expected, _ = gradients(model_on("cpu", recipe), inputs)
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            losses, found = gradients(model_on(device, recipe), inputs)
        assert losses.keys() == expected.keys()
        for name, loss in losses.items():
            assert loss.device.type == device and loss.isfinite(), name
        # The terms of one image depend on its matching, which rounding may turn: their sum hardly does.
        total, of_the_cpu = (sum(x.item() for x in terms.values()) for terms in (losses, expected))
        assert total == pytest.approx(of_the_cpu, rel=TOLERANCES[dtype])
        assert all(gradient is not None and gradient.device.type == device for gradient in found.values())
        if dtype != torch.float16:  # unscaled gradients may leave its range
            assert all(gradient.isfinite().all() for gradient in found.values())

    def test_results_keep_the_contract(self, device, dtype, recipe, inputs):
        model = model_on(device, recipe).eval()
        with torch.no_grad(), torch.autocast(device, dtype, enabled=dtype != torch.float32):
            results = model(inputs)
        for result, size in zip(results, SIZES, strict=True):
            check_result(on_the_cpu(result), model, *size)
            assert result["panoptic_seg"][0].device.type == result["sem_seg"].device.type == device
            assert result["sem_seg"].isfinite().all()


def on_the_cpu(result: dict[str, Any]) -> dict[str, Any]:
    panoptic_seg, segments = result["panoptic_seg"]
    return {
        "panoptic_seg": (panoptic_seg.cpu(), segments),
        "instances": result["instances"].to("cpu"),
        "sem_seg": result["sem_seg"].cpu(),
    }


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_candidates_are_those_of_the_cpu(device, recipe, inputs):
    """In float32, both images in one batch, one of them padded."""

    def candidates(model: PanopticSegFormer) -> list[Candidates]:
        images = torch.zeros(2, 3, 64, 96)
        for image, x in zip(images, inputs, strict=True):
            image[:, : x["image"].shape[1], : x["image"].shape[2]] = x["image"] / 128 - 1
        padding_mask = torch.zeros(2, 64, 96, dtype=torch.bool)
        padding_mask[1, 50:], padding_mask[1, :, 70:] = True, True
        with torch.no_grad():
            return model.eval().candidates(images.to(model.device), padding_mask.to(model.device))

    for ours, theirs in zip(candidates(model_on(device, recipe)), candidates(model_on("cpu", recipe)), strict=True):
        torch.testing.assert_close(ours.class_scores.cpu(), theirs.class_scores, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(ours.mask_scores.cpu(), theirs.mask_scores, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("device", DEVICES)
class TestDeterministicAttention:
    """deterministic=True: gradients by the bag, whoever went forward."""

    def test_twice_the_same_and_right(self, device):
        value, shapes, locations, weights = problem(1, [(9, 7), (4, 3), (1, 1)], queries=600, heads=4, dim=8)
        expected = output_and_gradients(ms_deform_attn_reference, (value, shapes, locations, weights))
        inputs = (value.float().to(device), shapes, locations.float().to(device), weights.float().to(device))
        attend = partial(ms_deform_attn, deterministic=True, implementation="bag")
        first, second = (output_and_gradients(attend, inputs) for _ in range(2))
        assert all(x.device.type == device for x in first)
        assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
        # Near a kink the slope hangs on the last bit of a location: so the gradient of locations is left to float64.
        output, grad_value, _, grad_weights = largest_differences(first, expected)
        assert max(output, grad_value, grad_weights) < 1e-4
        exact = (value.to(device), shapes, locations.to(device), weights.to(device))
        assert max(largest_differences(output_and_gradients(attend, exact), expected)) < 1e-11

    def test_whoever_is_chosen(self, device, monkeypatch):
        monkeypatch.delenv("PSF_MSDA", raising=False)
        value, shapes, locations, weights = problem(2, [(5, 6)], queries=40)
        inputs = (value.to(device), shapes, locations.to(device), weights.to(device))
        results = [output_and_gradients(partial(ms_deform_attn, deterministic=True), inputs) for _ in range(2)]
        assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("on_device", [True, False])
def test_merging_equals_that_of_the_cpu(device, on_device):
    """Rectangles that overlap much; equal confidences, empty masks and unreachable thresholds among them."""
    generator = torch.Generator().manual_seed(3)
    masks = torch.zeros(40, 45, 60, dtype=torch.bool)
    for mask in masks[2:]:
        top, left, height, width = (int(x * 40) for x in torch.rand(4, generator=generator))
        mask[top : top + height, left : left + width] = True
    confidence = torch.randint(0, 12, (40,), generator=generator).float() / 12
    t_cnf, t_keep = torch.rand(2, 40, generator=generator, dtype=torch.float64) * 0.7
    problem = (confidence, masks, masks.sum((1, 2)), t_cnf, t_keep)
    expected = mask_wise_merging(*problem, on_device=False)
    assert len(expected.segments) > 5
    merged = mask_wise_merging(*(x.to(device) for x in problem), on_device=on_device)
    assert merged.panoptic_seg.device.type == device
    assert torch.equal(merged.panoptic_seg.cpu(), expected.panoptic_seg)
    assert merged.segments == expected.segments


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["MaskWiseMerging", "PixelArgmax", "ClassTimesMask"])
def test_results_of_given_candidates_equal_those_of_the_cpu(device, name):
    """Soft ellipses with padding and another output size: no score lies at a threshold."""
    model = tiny_model({"POST_PROCESSOR.NAME": name})
    candidates, geometry = ellipses(24, 32, 40), ImageGeometry((192, 256), (180, 256), (135, 192))
    expected, found = (
        model.post_processor.results(to(where, candidates), model.classes, geometry, panoptic=True, instance=True)
        for where in ("cpu", device)
    )
    panoptic_seg, segments = found["panoptic_seg"]
    assert panoptic_seg.device.type == found["instances"].scores.device.type == device
    assert len(segments) >= 3 and len(found["instances"]) > 3
    expected_map, expected_segments = expected["panoptic_seg"]
    assert (panoptic_seg.cpu() == expected_map).float().mean() > 0.999  # a pixel's score may round to the other side
    assert [without_numbers(s) for s in segments] == [without_numbers(s) for s in expected_segments]
    for segment, other in zip(segments, expected_segments, strict=True):
        assert segment["area"] == pytest.approx(other["area"], abs=3)
        assert segment["score"] == pytest.approx(other["score"], rel=1e-3)
    ours, theirs = found["instances"].to("cpu"), expected["instances"]
    assert torch.equal(ours.pred_classes, theirs.pred_classes)
    torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-3, atol=1e-6)
    assert (ours.pred_masks == theirs.pred_masks).float().mean() > 0.999
    assert (ours.pred_boxes.tensor - theirs.pred_boxes.tensor).abs().max() <= 1


def without_numbers(segment: dict[str, Any]) -> dict[str, Any]:
    return {key: segment[key] for key in ("id", "category_id", "isthing")}


def ellipses(count: int, height: int, width: int) -> Candidates:
    """Soft ones of all sizes, two of three things; their confidences differ clearly."""
    generator = torch.Generator().manual_seed(5)
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    centre_y, centre_x, radius_y, radius_x = torch.rand(4, count, 1, 1, generator=generator)
    distance = ((y - centre_y) / (0.1 + 0.3 * radius_y)) ** 2 + ((x - centre_x) / (0.1 + 0.3 * radius_x)) ** 2
    is_thing = torch.arange(count) % 3 > 0
    return Candidates(
        class_scores=0.3 + 0.7 * torch.randperm(count, generator=generator) / count,
        class_indices=torch.where(is_thing, torch.arange(count) % 3, torch.arange(count) % 4),
        is_thing=is_thing,
        mask_scores=torch.sigmoid(6 * (1 - distance)),
        boxes_cxcywh_norm=None,
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activation_checkpointing_changes_nothing(device, dtype, inputs):
    """Dropout too: its random numbers are those of the device."""
    dropout = {"PIXEL_ENCODER.DROPOUT": 0.2, "LOCATION_DECODER.DROPOUT": 0.2}
    parts = ["backbone", "pixel_encoder", "location_decoder", "mask_decoder"]
    results = []
    for checkpointed in ([], parts):
        model = model_on(device, "released", **dropout, ACTIVATION_CHECKPOINTING=checkpointed)
        torch.manual_seed(3)
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            results.append(gradients(model, inputs))
    (plain_losses, plain), (losses, found) = results
    assert found.keys() == plain.keys()
    pairs = [*zip(losses.values(), plain_losses.values()), *zip(found.values(), plain.values())]
    if device == "cpu":
        assert all(torch.equal(x, y) for x, y in pairs)
    # The reference's backward on a GPU adds in any order: last bits differ from run to run.
    ours, theirs = (torch.cat([x.flatten() for x in side]) for side in zip(*pairs, strict=True))
    assert ours.isfinite().all() and (ours - theirs).norm() < 1e-2 * theirs.norm()
