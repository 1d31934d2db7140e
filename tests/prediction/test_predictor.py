"""`psf.Predictor`: one image, many, threads, precision, tiles; always the results of the model itself."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import psf
from psf.engine import Predictor as EnginePredictor
from psf.errors import UserError
from psf.prediction import PanopticResult, read_model_file
from tests.model_files import noise


def as_tuple(result: PanopticResult) -> tuple[list[int], str]:
    return result.panoptic_map.ravel().tolist(), repr(result.segments)


def test_agrees_with_the_model(predictor: psf.Predictor, model_file: Path) -> None:
    """All three tasks are those of Detectron2's way, in which the model makes its results itself."""
    file = read_model_file(model_file, device="cpu")
    expected = EnginePredictor(file.cfg, file.content)(noise()[..., ::-1])
    found = predictor(noise())
    assert (found.panoptic_map == expected["panoptic_seg"][0].numpy()).all() and len(found.segments) > 1
    kept = [(one.id, one.contiguous_id, one.is_thing, one.score, one.area) for one in found.segments]
    assert kept == [
        tuple(one[k] for k in ("id", "category_id", "isthing", "score", "area")) for one in expected["panoptic_seg"][1]
    ]
    assert [one.score for one in found.instances] == expected["instances"].scores.tolist()
    masks = np.stack([one.mask for one in found.instances])
    assert (masks == expected["instances"].pred_masks.numpy()).all() and len(masks)
    own = np.array([3, 5, 30, 7, 12, 9, 40])  # ids of the dataset, by channel
    assert (found.semantic == own[expected["sem_seg"].argmax(0).numpy()]).all()


def test_lists_and_iterators(predictor: psf.Predictor) -> None:
    images = [noise(seed=seed)[: 64 - 16 * (seed % 2)] for seed in range(5)]
    expected = [as_tuple(predictor(one)) for one in images]
    assert [as_tuple(one) for one in predictor(images)] == expected
    assert predictor([]) == []
    taken = []

    def source() -> Iterator[np.ndarray]:
        for i, one in enumerate(images):
            taken.append(i)
            yield one

    stream = predictor(source())
    assert isinstance(next(stream), PanopticResult) and taken == [0]  # read as far as needed
    assert [as_tuple(one) for one in stream] == expected[1:]


def test_batches_of_one_size(model_file: Path, predictor: psf.Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    batched = psf.Predictor(model_file, device="cpu", batch_size=4)
    shapes = []
    original = batched.model.candidates_by_image
    monkeypatch.setattr(
        batched.model, "candidates_by_image", lambda x: [shapes.append(len(x)), *original(x)][1:], raising=True
    )
    images = [noise(seed=seed)[: 64 - 16 * (seed == 1)] for seed in range(5)]
    found = batched(images)
    assert shapes == [3, 1, 1]  # a window of four images has two sizes
    for one, image in zip(found, images, strict=True):
        assert one.panoptic_map.shape == image.shape[:2]
        assert (one.panoptic_map == predictor(image).panoptic_map).mean() > 0.99  # up to rounding


def test_results_of_lists_keep_nothing(predictor: psf.Predictor) -> None:
    """They run the network again for each part that was not asked for, and keep that part alone."""
    calls = []
    handle = predictor.model.backbone.register_forward_hook(lambda *_: calls.append(1))
    try:
        first, second = predictor([noise(), noise(seed=1)])
        assert len(calls) == 2
        assert first.instances and first.instances and len(calls) == 3
        assert first.semantic.any() and first.semantic.any() and len(calls) == 4
        [both] = predictor([noise()], tasks=["panoptic", "instance"])
        assert both.instances == first.instances and len(calls) == 5
        one = predictor(noise())
        assert one.instances and one.semantic.any() and one.explain() and len(calls) == 6  # kept
        assert second.draw().size[0] >= 96
    finally:
        handle.remove()


def test_threads(predictor: psf.Predictor) -> None:
    images = [noise(seed=seed) for seed in range(4)]
    expected = [as_tuple(predictor(one)) for one in images]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: as_tuple(predictor(images[i % 4])), range(12)))
    assert found == expected * 3


def test_one_thread_at_a_time(predictor: psf.Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    running, most = [], []
    original = predictor.model.candidates_by_image

    def watched(inputs: list) -> list:
        running.append(1)
        most.append(len(running))
        found = list(original(inputs))
        running.pop()
        return found

    monkeypatch.setattr(predictor.model, "candidates_by_image", watched)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(predictor, [noise()] * 8))
    assert most == [1] * 8


def test_bfloat16(model_file: Path, predictor: psf.Predictor) -> None:
    mixed = psf.Predictor(model_file, device="cpu", dtype="bfloat16")
    seen = []
    handle = mixed.model.backbone.stem.conv1.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    found = mixed(noise())
    handle.remove()
    assert seen == [torch.bfloat16] and found.query_embeddings.dtype == np.float32
    assert (found.semantic == predictor(noise()).semantic).mean() > 0.8


def test_tiles(model_file: Path) -> None:
    """A large image costs as much memory as a tile: the network sees nothing larger."""
    keys = {"MODEL.PSF.TEST.TILES.SIZE": "64", "INPUT.MIN_SIZE_TEST": "0", "INPUT.MAX_SIZE_TEST": "1000"}
    tiled = psf.Predictor(model_file, device="cpu", options=[x for pair in keys.items() for x in pair])
    sizes = []
    tiled.model.backbone.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(inputs[0].shape[2:])))
    found = tiled(noise(64, 192))
    assert len(sizes) > 2 and set(sizes) == {(64, 64)} and found.size == (64, 192)
    assert found.query_embeddings.shape == (len(found.segments), 64)


def test_views_have_no_embeddings(model_file: Path) -> None:
    keys = ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(32, 64)", "TEST.AUG.MAX_SIZE", "96"]
    found = psf.Predictor(model_file, device="cpu", options=keys)(noise())
    assert found.size == (64, 96) and found.explain().num_candidates
    with pytest.raises(UserError, match="no query embeddings: views"):
        _ = found.query_embeddings


def test_embeddings_are_those_of_the_segments(predictor: psf.Predictor) -> None:
    """The refined queries, which the mask decoders give, in the order of the segments."""
    refined = []
    handles = [
        part.register_forward_hook(lambda module, inputs, output: refined.append(output.refined_queries[-1][0]))
        for part in (predictor.model.stuff_decoder, predictor.model.thing_decoder)
    ]
    found = predictor(noise())
    for handle in handles:
        handle.remove()
    stuff, things = (one.detach().numpy() for one in refined)
    assert found.query_embeddings.shape == (len(found.segments), 64)
    for segment, embedding in zip(found.segments, found.query_embeddings, strict=True):
        if segment.is_thing:
            assert (things == embedding).all(axis=1).any()
        else:
            assert (stuff[segment.contiguous_id - 3] == embedding).all()


def test_settings_are_checked(model_file: Path) -> None:
    with pytest.raises(UserError, match="dtype is 'int8': expected one of float32, bfloat16"):
        psf.Predictor(model_file, dtype="int8")
    with pytest.raises(UserError, match="batch_size is 0: expected a number from 1"):
        psf.Predictor(model_file, batch_size=0)
    with pytest.raises(UserError, match="cuda:99"):
        psf.Predictor(model_file, device="cuda:99")


def test_warm_up_and_attributes(predictor: psf.Predictor) -> None:
    predictor.warm_up(32, 48)
    assert predictor.device == torch.device("cpu") and predictor.dtype == "float32"
    assert [one.category_id for one in predictor.classes] == [3, 5, 30, 7, 12, 9, 40]
