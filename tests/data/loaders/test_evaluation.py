"""Images for evaluation: each once, in batches of one size."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.utils import comm
from PIL import Image

from psf.data.loaders import build_test_loader, same_size_batches
from psf.errors import UserError
from tests.data.loaders.damaged import read, with_damage
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
