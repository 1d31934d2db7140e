"""Images for training, as Detectron2 hands them out, and for evaluation: each once, in batches of one size."""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from PIL import Image

from psf.data import RandomState, TrainingLoader, build_test_loader, build_train_loader
from psf.data.loaders import check_sampler, repeat_factors, same_size_batches, without_empty_images
from tests.models import tiny_config


def images(*sizes: tuple[int, int]) -> list[dict]:
    return [{"file_name": f"{i}.png", "height": h, "width": w} for i, (h, w) in enumerate(sizes)]


def test_batches_of_one_size():
    dataset = images((2, 3), (3, 2), (2, 3), (2, 3), (3, 2), (4, 4))
    assert same_size_batches(dataset, 2) == [[0, 2], [3], [1, 4], [5]]
    assert same_size_batches(dataset, 1) == [[0], [1], [2], [3], [4], [5]]


def test_sizes_of_files(tmp_path: Path):
    """Where the dicts have none; a picture that is to be turned has the sides that it will have."""
    turned = Image.Exif()
    turned[0x0112] = 6
    for name, size, exif in (("a.jpg", (30, 20), None), ("b.jpg", (20, 30), None), ("c.jpg", (30, 20), turned)):
        Image.new("RGB", size).save(tmp_path / name, **({} if exif is None else {"exif": exif}))
    dataset = [{"file_name": str(tmp_path / name)} for name in ("a.jpg", "b.jpg", "c.jpg")]
    assert same_size_batches(dataset, 2) == [[0], [1, 2]]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_processes_share_the_images(monkeypatch: pytest.MonkeyPatch, batch_size: int):
    cfg = tiny_config({"TEST.BATCH_SIZE": batch_size}, DATALOADER__NUM_WORKERS=0)
    dataset = images((2, 3), (3, 2), (2, 3), (2, 3), (3, 2))
    found = []
    for rank in range(3):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(comm, "get_world_size", lambda: 3)
        loader = build_test_loader(cfg, dataset, dict)
        batches = list(loader)
        assert len(batches) == len(loader)
        found += [one["file_name"] for batch in batches for one in batch]
    assert sorted(found) == [one["file_name"] for one in dataset]


def test_empty_images_are_dropped_when_the_key_says_so():
    thing, crowd = {"iscrowd": 0}, {"iscrowd": 1}
    dicts = [
        {"segments_info": [thing, crowd]},
        {"segments_info": [crowd]},
        {"segments_info": []},
        {"annotations": [], "segments_info": [thing]},
        {"annotations": []},
        {"annotations": [thing]},
        {"psf_scene": {}},
    ]
    kept = [dicts[position] for position in (0, 3, 5, 6)]
    assert without_empty_images(tiny_config(DATALOADER__FILTER_EMPTY_ANNOTATIONS=True), dicts) == kept
    assert without_empty_images(tiny_config(), dicts) == dicts
    with pytest.raises(ValueError, match=r"DATALOADER\.FILTER_EMPTY_ANNOTATIONS to False"):
        without_empty_images(tiny_config(DATALOADER__FILTER_EMPTY_ANNOTATIONS=True), dicts[1:3])


def test_samplers_that_need_classes():
    cfg = tiny_config(DATALOADER__SAMPLER_TRAIN="RepeatFactorTrainingSampler")
    check_sampler(cfg, [{"annotations": []}, {"segments_info": []}])
    with pytest.raises(ValueError, match=r"SAMPLER_TRAIN is .*segments_info nor annotations.*\"TrainingSampler\""):
        check_sampler(cfg, [{"segments_info": []}, {"psf_scene": {}}])
    with pytest.raises(ValueError, match=r'SAMPLER_TRAIN is "RandomSubsetTrainingSampler": expected one of'):
        check_sampler(tiny_config(DATALOADER__SAMPLER_TRAIN="RandomSubsetTrainingSampler"), [])


def test_images_with_rare_classes_are_repeated():
    cfg = tiny_config(DATALOADER__REPEAT_THRESHOLD=0.9)
    classes = [[0], [0], [0, 1], [0]]
    dicts = [{"segments_info": [{"category_id": one} for one in of_image]} for of_image in classes]
    dicts[3]["annotations"] = []  # the panoptic segments are what the model is trained on
    # Class 1 is in a quarter of the images, class 0 in all: sqrt(0.9 / 0.25) and 1.
    assert repeat_factors(cfg, dicts).tolist() == pytest.approx([1, 1, (0.9 / 0.25) ** 0.5, 1])


class TestTrainingLoader:
    """Images of two aspect ratios, and a mapper that draws from all three random generators."""

    DATASET = images(*([(2, 3), (3, 2), (2, 3)] * 3))

    @staticmethod
    def mapper(one: dict) -> dict:
        return {**one, "drawn": (random.random(), np.random.rand(), torch.rand(()).item())}

    def cfg(self, num_workers: int, group: bool, **more: object) -> CfgNode:
        keys = {"DATALOADER__NUM_WORKERS": num_workers, "DATALOADER__ASPECT_RATIO_GROUPING": group}
        return tiny_config(SOLVER__IMS_PER_BATCH=2, **keys, **more)

    def loader(self, num_workers: int, group: bool, **more: object) -> TrainingLoader:
        return build_train_loader(self.cfg(num_workers, group, **more), self.DATASET, self.mapper)

    @pytest.mark.parametrize("group", [False, True])
    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_hands_out_what_detectron2s_loader_does(self, num_workers: int, group: bool):
        seed_all_rng(7)
        theirs = build_detection_train_loader(self.cfg(num_workers, group), dataset=self.DATASET, mapper=self.mapper)
        expected = list(islice(theirs, 8))
        seed_all_rng(7)
        assert list(islice(self.loader(num_workers, group), 8)) == expected

    @pytest.mark.parametrize("group", [False, True])
    @pytest.mark.parametrize(("num_workers", "num_before"), [(0, 5), (2, 1), (2, 4), (2, 5)])
    def test_continues_where_another_one_has_stopped(self, num_workers: int, num_before: int, group: bool):
        seed_all_rng(7)
        first = self.loader(num_workers, group)
        batches = iter(first)
        for _ in range(num_before):
            next(batches)
        state, random_state = first.state_dict(), RandomState.capture()
        expected = list(islice(batches, 6))
        seed_all_rng(8)
        second = self.loader(num_workers, group)
        assert second.load_state_dict(state)
        batches = iter(second)
        RandomState.of_entry(random_state.as_entry()).restore()
        found, random_state = list(islice(batches, 2)), RandomState.capture()
        third = self.loader(num_workers, group)  # from a run that was itself resumed
        assert third.load_state_dict(second.state_dict())
        batches = iter(third)
        random_state.restore()
        assert [*found, *islice(batches, 4)] == expected

    def test_other_numbers_continue_with_the_next_images(self):
        def names(batches: Iterable[list[dict]]) -> list[str]:
            return [one["file_name"] for batch in batches for one in batch]

        first = self.loader(0, False)
        batches = iter(first)
        next(batches)
        state, expected = first.state_dict(), names(islice(batches, 3))
        second = self.loader(1, False)
        assert not second.load_state_dict(state)
        assert names(islice(second, 3)) == expected

    def test_repeat_factors_have_a_state_too(self):
        keys = {"DATALOADER__SAMPLER_TRAIN": "RepeatFactorTrainingSampler", "DATALOADER__REPEAT_THRESHOLD": 0.9}
        dataset = [{**one, "annotations": [{"category_id": i % 3}]} for i, one in enumerate(self.DATASET)]
        first = build_train_loader(self.cfg(0, False, **keys), dataset, lambda one: one)
        batches = iter(first)
        next(batches)
        second = build_train_loader(self.cfg(0, False, **keys, SEED=5), dataset, lambda one: one)
        assert second.load_state_dict(first.state_dict())
        assert list(islice(second, 9)) == list(islice(batches, 9))

    def test_processes_must_share_a_batch_evenly(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(comm, "get_world_size", lambda: 3)
        with pytest.raises(ValueError, match=r"SOLVER\.IMS_PER_BATCH is 2, .* expected a multiple of 3"):
            self.loader(0, False)
