"""datasets/prepare_nuclei.py on an archive in the public layout, made here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from psf.data import load_panoptic_json
from psf.data.panoptic_labels import read_panoptic_labels
from psf.tools.dataset_validation.validation import validate_panoptic
from tests.conftest import load_script

# int(sha1(ID), 16) % 5 by hashlib is 0, 2 and 1.
IN_VAL, IN_TRAIN, LARGE = "b", "a", "c"


@pytest.fixture(scope="module")
def script(repository: Path) -> ModuleType:
    return load_script(repository / "datasets" / "prepare_nuclei.py")


def write_image(root: Path, name: str, size: tuple[int, int], masks: list[tuple[int, int]]) -> None:
    """An image of (height, width), and masks of whole columns, from the first to before the last."""
    for kind in ("images", "masks"):
        (root / name / kind).mkdir(parents=True)
    pixels = np.full((*size, 4), 100, np.uint8)  # with transparency, as the archive's
    pixels[..., :3] += np.arange(size[1], dtype=np.uint8)[:, None] % 50
    Image.fromarray(pixels).save(root / name / "images" / f"{name}.png")
    for number, (left, right) in enumerate(masks):
        mask = np.zeros(size, np.uint8)
        mask[:, left:right] = 255
        Image.fromarray(mask).save(root / name / "masks" / f"{number}.png")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    root = tmp_path / "stage1_train"
    write_image(root, IN_VAL, (6, 10), [(1, 4), (3, 6), (3, 4), (8, 9)])  # the third lies under the first
    write_image(root, IN_TRAIN, (4, 360), [(0, 2)])
    write_image(root, LARGE, (4, 361), [(0, 2)])
    return root


def test_both_splits(script: ModuleType, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "nuclei"
    assert script.main(["--archive", str(archive), "--output", str(output)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("train: 1 images, 2 segments; skipped 1 larger images; 0 pixels")
    # Column 3 belongs to the first mask, and to the two after it, 6 pixels each.
    assert said[1] == (
        "val: 1 images, 4 segments; skipped 0 larger images; 12 pixels of overlapping masks went to the earlier one, "
        "1 masks kept none"
    )
    for split in ("train", "val"):
        places = (output / f"panoptic_{split}.json", output / f"panoptic_{split}", output / split)
        assert validate_panoptic(*map(str, places)).is_clean
    [first] = load_panoptic_json(*map(str, places))
    assert first["image_id"] == IN_VAL and (first["height"], first["width"]) == (6, 10)
    labels, segments = read_panoptic_labels(first["pan_seg_file_name"], first["segments_info"])
    names = {one["id"]: one["category_id"] for one in segments}  # contiguous: nucleus 0, background 1
    assert [names[label] for label in labels[0].tolist()] == [1, 0, 0, 0, 0, 0, 1, 1, 0, 1]
    assert labels[0, 1] == labels[0, 2] == labels[0, 3] != labels[0, 4] == labels[0, 5] != labels[0, 8]
    assert (labels == labels[0]).all() and len(segments) == 4
    with Image.open(output / "val" / f"{IN_VAL}.png") as image:
        assert image.mode == "RGB" and np.asarray(image)[0, :, 0].tolist() == list(range(100, 110))


def test_nothing_is_overwritten_unasked(
    script: ModuleType, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["--archive", str(archive), "--output", str(tmp_path / "nuclei"), "--splits", "val"]
    assert script.main(words) == 0
    assert script.main(words) == 2 and "panoptic_val.json exists; remove it" in capsys.readouterr().err
    (archive / IN_VAL / "masks" / "3.png").unlink()
    assert script.main([*words, "--overwrite"]) == 0
    content = json.loads((tmp_path / "nuclei" / "panoptic_val.json").read_text())
    assert len(content["annotations"][0]["segments_info"]) == 3


@pytest.mark.parametrize("place", ["val/b.png", "panoptic_val/b.png", "panoptic_val.json"])
def test_what_others_have_written_stays(
    script: ModuleType, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
):
    """Not with --overwrite either."""
    target = tmp_path / "nuclei" / place
    target.parent.mkdir(parents=True)
    if target.suffix == ".json":
        target.write_text("[]")
    else:
        Image.new("RGB", (10, 6)).save(target)
    before = target.read_bytes()
    words = ["--archive", str(archive), "--output", str(tmp_path / "nuclei"), "--splits", "val", "--overwrite"]
    assert script.main(words) == 2
    assert f"error: {target} exists" in capsys.readouterr().err and target.read_bytes() == before


class TestMistakes:
    def assert_refused(self, script: ModuleType, archive: Path, message: str, split: str = "val") -> None:
        with pytest.raises(ValueError, match=message):
            script.prepare(archive, archive.parent / "nuclei", split, workers=1)
        assert not (archive.parent / "nuclei" / f"panoptic_{split}.json").exists()

    def test_no_archive(self, script: ModuleType, tmp_path: Path):
        self.assert_refused(script, tmp_path / "none", r"found no file ID/images/ID\.png; datasets/README\.md")

    def test_no_masks(self, script: ModuleType, archive: Path):
        shutil.rmtree(archive / IN_VAL / "masks")
        self.assert_refused(script, archive, r"masks: found no file \*\.png, expected a mask")

    def test_a_mask_of_another_size(self, script: ModuleType, archive: Path):
        Image.new("L", (9, 6), 255).save(archive / IN_VAL / "masks" / "1.png")
        self.assert_refused(script, archive, r"1\.png: found 9 x 6 pixels .*, expected 10 x 6")

    def test_an_image_that_is_not_called_like_its_folder(self, script: ModuleType, archive: Path):
        images = archive / IN_VAL / "images"
        (images / f"{IN_VAL}.png").rename(images / "other.png")
        self.assert_refused(script, archive, rf"{IN_VAL}\.png: no such image file")

    def test_a_split_without_images(self, script: ModuleType, archive: Path):
        shutil.rmtree(archive / IN_TRAIN)
        self.assert_refused(script, archive, "no image of the split train with at most 360 x 360", "train")

    def test_nothing_is_written_if_the_second_split_is_wrong(
        self, script: ModuleType, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ):
        shutil.rmtree(archive / IN_VAL)
        assert script.main(["--archive", str(archive), "--output", str(tmp_path / "nuclei")]) == 2
        assert "no image of the split val" in capsys.readouterr().err and not (tmp_path / "nuclei").exists()
