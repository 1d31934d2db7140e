"""Images for evaluation: each once, in batches of one size."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch.utils.data as torch_data
from detectron2.data import MapDataset
from detectron2.utils import comm
from PIL import Image

from psf.data import build_test_loader
from psf.data.loaders import (
    SkipUnreadable,
    check_sampler,
    explain_dead_workers,
    same_size_batches,
    without_empty_images,
)
from psf.errors import UserError
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


def test_samplers_that_need_annotations():
    cfg = tiny_config(DATALOADER__SAMPLER_TRAIN="RepeatFactorTrainingSampler")
    check_sampler(cfg, [{"annotations": []}])
    with pytest.raises(ValueError, match=r"SAMPLER_TRAIN is .*`annotations`.*set it to \"TrainingSampler\""):
        check_sampler(cfg, [{"segments_info": []}])
    with pytest.raises(ValueError, match=r'SAMPLER_TRAIN is "RandomSubsetTrainingSampler": expected one of'):
        check_sampler(tiny_config(DATALOADER__SAMPLER_TRAIN="RandomSubsetTrainingSampler"), [])


def read(dataset_dict: dict) -> dict:
    """A mapper: some images are damaged, and one ends its worker."""
    if dataset_dict["file_name"] in dataset_dict["damaged"]:
        raise UserError(f"{dataset_dict['file_name']}: damaged")
    return dataset_dict


def with_damage(number: int, *damaged: str) -> list[dict]:
    return [{"file_name": f"{i}.png", "height": 4, "width": 4, "damaged": damaged} for i in range(number)]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_evaluation_goes_on_without_unreadable_images(workers: int, caplog: pytest.LogCaptureFixture):
    cfg = tiny_config({"TEST.BATCH_SIZE": 2}, DATALOADER__NUM_WORKERS=workers)
    loader = build_test_loader(cfg, with_damage(5, "1.png", "4.png"), read, keep_going=True)
    for _ in range(2):  # each iteration counts anew
        assert [[one["file_name"] for one in batch] for batch in loader] == [["0.png"], ["2.png", "3.png"]]
        assert loader.unreadable == ["1.png: damaged", "4.png: damaged"]
    assert "Skipped in the evaluation: 1.png: damaged" in caplog.text
    with pytest.raises(UserError, match=r"^1\.png: damaged$"):
        list(build_test_loader(cfg, with_damage(5, "1.png", "4.png"), read))


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
    """Two images, each in another worker; one is allowed."""
    cfg = tiny_config()
    mapper = SkipUnreadable(cfg, read, 5)
    loader = torch_data.DataLoader(
        MapDataset(with_damage(2, "0.png", "1.png"), partial(note, mapper)), num_workers=2, collate_fn=list
    )
    assert sorted(name for [name] in loader) == ["None", "UserError"]
    again = pickle.loads(pickle.dumps(mapper))  # for workers that are not forked
    assert again(with_damage(1, "0.png")[0]) is None


def note(mapper: SkipUnreadable, dataset_dict: dict) -> str:
    try:
        return str(mapper(dataset_dict))
    except UserError as error:
        return type(error).__name__


class Stuck:
    """An image that cannot be sent to the main process, as without shared memory."""

    def __reduce__(self) -> str:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")


def misbehave(dataset_dict: dict) -> object:
    how = dataset_dict["file_name"]
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "slow":
        time.sleep(60)
    return Stuck()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("killed", "is killed by signal: Killed|exited unexpectedly"),
        ("slow", "timed out after 1 seconds"),
        ("not sent", "exited unexpectedly"),
    ],
)
def test_workers_that_send_nothing_are_reported(how: str, message: str, capfd: pytest.CaptureFixture[str]):
    """In one line that says what to change, and within seconds; the reason of a worker is printed, too."""
    cfg = tiny_config(DATALOADER__NUM_WORKERS=1, DATALOADER__TIMEOUT=1 if how == "slow" else 100)
    loader = build_test_loader(cfg, [{"file_name": how}], misbehave)
    start = time.monotonic()
    expected = rf"^DataLoader .*({message}).*/dev/shm.*DATALOADER\.NUM_WORKERS"
    with pytest.raises(UserError, match=expected), explain_dead_workers():
        list(loader)
    assert time.monotonic() - start < 50
    assert ("cannot send its batch: unable to allocate" in capfd.readouterr().err) == (how == "not sent")


def test_a_worker_that_ends_while_a_tensor_is_fetched_from_it():
    reader, writer = multiprocessing.Pipe(duplex=False)
    writer.close()
    with reader, pytest.raises(UserError, match=r"^DataLoader worker ended \(EOFError\): "), explain_dead_workers():
        reader.recv()


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), FileNotFoundError("a.png"), EOFError()])
def test_other_errors_are_not_explained_away(error: Exception):
    with pytest.raises(type(error)), explain_dead_workers():
        raise error
