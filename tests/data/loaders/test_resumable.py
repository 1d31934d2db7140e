"""Images for training, as Detectron2 hands them out, and the same after a stop."""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import islice

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from psf.data.loaders import RandomState, TrainingLoader, build_train_loader, unchanged_random_state
from tests.models import tiny_config


def images(*sizes: tuple[int, int]) -> list[dict]:
    return [{"file_name": f"{i}.png", "height": h, "width": w} for i, (h, w) in enumerate(sizes)]


def test_random_state_of_gpus(monkeypatch: pytest.MonkeyPatch):
    """Of all visible ones, and also if a resumed run sees fewer."""
    states = {0: torch.tensor([1, 2], dtype=torch.uint8), 1: torch.tensor([3, 4], dtype=torch.uint8)}
    assert RandomState.capture().gpus == ()  # CUDA is not used
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [state.clone() for state in states.values()])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, gpu: states.update({gpu: state}))
    with unchanged_random_state():
        states[0] = states[1] = torch.zeros(2, dtype=torch.uint8)
    assert [state.tolist() for state in states.values()] == [[1, 2], [0, 0]]
    found = RandomState.of_entry(RandomState.capture().as_entry()).gpus
    assert [state.tolist() for state in found] == [[1, 2], [0, 0]]


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
        assert not second.load_state_dict(state)
        batches = iter(second)
        RandomState.of_entry(random_state.as_entry()).restore()
        found, random_state = list(islice(batches, 2)), RandomState.capture()
        third = self.loader(num_workers, group)  # from a run that was itself resumed
        assert not third.load_state_dict(second.state_dict())
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
        assert second.load_state_dict(state) == ["num_workers (0, now 1)"]
        assert names(islice(second, 3)) == expected

    def test_another_set_of_the_same_length_or_another_sampler_is_not_the_same(self):
        state = self.loader(0, False).state_dict()
        moved = [{**one, "file_name": f"/elsewhere/{one['file_name']}"} for one in self.DATASET]
        renamed = [{**one, "file_name": f"new_{i}.png"} for i, one in enumerate(self.DATASET)]
        classes = [{**one, "annotations": [{"category_id": i % 3}]} for i, one in enumerate(self.DATASET)]
        factors = {"DATALOADER__SAMPLER_TRAIN": "RepeatFactorTrainingSampler"}
        assert not build_train_loader(self.cfg(0, False), moved, self.mapper).load_state_dict(state)
        [change] = build_train_loader(self.cfg(0, False), renamed, self.mapper).load_state_dict(state)
        assert change.startswith("images (")
        [change] = build_train_loader(self.cfg(0, False, **factors), classes, self.mapper).load_state_dict(state)
        assert change.startswith("sampler (TrainingSampler, now RepeatFactorTrainingSampler ")

    def test_repeat_factors_have_a_state_too(self):
        keys = {"DATALOADER__SAMPLER_TRAIN": "RepeatFactorTrainingSampler", "DATALOADER__REPEAT_THRESHOLD": 0.9}
        dataset = [{**one, "annotations": [{"category_id": i % 3}]} for i, one in enumerate(self.DATASET)]
        first = build_train_loader(self.cfg(0, False, **keys), dataset, lambda one: one)
        batches = iter(first)
        next(batches)
        second = build_train_loader(self.cfg(0, False, **keys, SEED=5), dataset, lambda one: one)
        assert not second.load_state_dict(first.state_dict())
        assert list(islice(second, 9)) == list(islice(batches, 9))

    def test_processes_must_share_a_batch_evenly(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(comm, "get_world_size", lambda: 3)
        with pytest.raises(ValueError, match=r"SOLVER\.IMS_PER_BATCH is 2, .* expected a multiple of 3"):
            self.loader(0, False)
