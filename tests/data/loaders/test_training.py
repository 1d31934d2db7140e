"""Detectron2's keys under DATALOADER, and images that cannot be read."""

from __future__ import annotations

import pickle
from functools import partial

import pytest
import torch.utils.data as torch_data
from detectron2.data import MapDataset

from psf.data.loaders import SkipUnreadable, without_empty_images
from psf.errors import UserError
from tests.data.loaders.damaged import read, with_damage
from tests.models import tiny_config


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


@pytest.mark.parametrize(
    ("share", "number", "allowed"), [(0.0, 100, 0), (0.01, 5, 1), (0.01, 200, 2), (0.25, 8, 2), (1.0, 3, 3)]
)
def test_a_training_skips_up_to_a_share_of_its_images(share: float, number: int, allowed: int):
    """An image counts once, however often it comes; the next damaged image ends the training."""
    cfg = tiny_config(DATALOADER__MAX_UNREADABLE_SHARE=share)
    dicts = with_damage(number, *(f"{i}.png" for i in range(allowed + 1)))
    mapper = SkipUnreadable(cfg, read, number)
    for _ in range(3):
        assert [mapper(one) for one in dicts[:allowed]] == [None] * allowed
        assert mapper(dicts[-1]) is not None or allowed + 1 >= number
    if allowed < number:
        with pytest.raises(UserError, match=rf"^{allowed}\.png: damaged"):
            mapper(dicts[allowed])


def test_workers_count_unreadable_images_together():
    """Two images, each in another worker; one is allowed. If they come at the same moment, both workers may refuse."""
    cfg = tiny_config()
    mapper = SkipUnreadable(cfg, read, 5)
    loader = torch_data.DataLoader(
        MapDataset(with_damage(2, "0.png", "1.png"), partial(note, mapper)), num_workers=2, collate_fn=list
    )
    assert sorted(name for [name] in loader) in (["None", "UserError"], ["UserError", "UserError"])
    again = pickle.loads(pickle.dumps(mapper))  # for workers that are not forked
    assert again(with_damage(1, "0.png")[0]) is None


def note(mapper: SkipUnreadable, dataset_dict: dict) -> str:
    try:
        return str(mapper(dataset_dict))
    except UserError as error:
        return type(error).__name__
