"""Masks per object, one file each: written by the layout of the 2018 Data Science Bowl, or beside the images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from psf.data.panoptic_labels import read_panoptic_ids
from tests.tools.dataset_conversion.label_files import convert, expected, grid, read_set, save, save_image


@pytest.fixture
def bowl(tmp_path: Path) -> Path:
    """Two images; the second one has no nucleus. Masks have 255, 1, a palette, and colors with transparency."""
    root = tmp_path / "stage1"
    save_image(root / "id1" / "images" / "id1.png", (2, 4))
    masks = root / "id1" / "masks"
    save(masks / "0c1.png", grid("255 0 0 0\n255 0 0 0"))
    save(masks / "5e2.png", grid("0 0 1 0\n0 0 0 0"))
    save(masks / "7a0.png", grid("0 0 0 0\n0 0 0 3"), "P")
    color = np.zeros((2, 4, 4), np.uint8)
    color[..., 3] = 255
    color[1, 1] = (0, 255, 0, 255)
    Image.fromarray(color).save(masks / "9f9.png")
    save(masks / "ff0.png", np.zeros((2, 4)))
    save_image(root / "id2" / "images" / "id2.png", (1, 2))
    (root / "id2" / "masks").mkdir()
    (root / "__MACOSX").mkdir()
    return root


def test_the_layout_of_the_data_science_bowl(bowl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--object-masks", bowl, "--things", "nucleus", "--overlap", "error", "--output", bowl.parent / "out")
    assert convert(*words, "--background", "background") == 0
    assert "1 masks without a pixel, dropped" in capsys.readouterr().out
    maps = read_set(bowl.parent / "out", bowl)
    assert list(maps) == ["id1/images/id1.png", "id2/images/id2.png"]
    assert maps["id1/images/id1.png"].tolist() == expected("""
        nucleus1 background nucleus2   background
        nucleus1 nucleus3   background nucleus4
    """)
    assert maps["id2/images/id2.png"].tolist() == expected("background background")
    content = json.loads((bowl.parent / "out" / "panoptic.json").read_text())
    assert [(one["id"], one["name"], one["isthing"]) for one in content["categories"]] == [
        (1, "nucleus", 1), (2, "background", 0),
    ]  # fmt: skip
    assert convert(*words, "--overwrite") == 0  # without a background class, the rest is void
    assert read_set(bowl.parent / "out", bowl)["id2/images/id2.png"].tolist() == expected(". .")


def test_classes_by_the_names_of_masks_and_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        save_image(tmp_path / "photos" / "x" / f"{name}.jpg", (1, 4))
    masks = tmp_path / "masks" / "x"
    save(masks / "a" / "red_cell_1.png", grid("1 0 0 0"))
    save(masks / "a" / "Red cell-02.png", grid("0 1 0 0"))
    save(masks / "a" / "debris" / "7.png", grid("0 0 1 0"))
    save(masks / "b" / "debris.png", grid("1 1 0 0"))
    (tmp_path / "classes.csv").write_text("name,value,isthing\nred cell,3,1\ndebris,4,0\n")
    words = ["--object-masks", tmp_path / "masks", "--image-root", tmp_path / "photos", "--overlap", "error"]
    words += ["--classes", tmp_path / "classes.csv", "--output", tmp_path / "out"]
    assert convert(*words) == 0
    cells = expected("cell1 cell2 debris .")
    maps = read_set(tmp_path / "out", tmp_path / "photos")
    assert [[one.replace("red cell", "cell") for one in row] for row in maps["x/a.jpg"]] == cells
    assert maps["x/b.jpg"].tolist() == expected("debris debris . .")
    assert convert(*words, "--background", "debris", "--overwrite") == 0
    assert read_set(tmp_path / "out", tmp_path / "photos")["x/b.jpg"].tolist() == expected(
        "debris debris debris debris"
    )
    assert convert(*words, "--background", "red cell", "--overwrite") == 2
    assert "--background: 'red cell' is a thing class" in capsys.readouterr().err

    save_image(tmp_path / "photos" / "c.jpg", (1, 4))
    assert convert(*words, "--overwrite") == 2
    assert "1 of 3 images without a label (c.jpg)" in capsys.readouterr().err
    assert convert(*words, "--overwrite", "--skip-unlabeled") == 0
    save(tmp_path / "masks" / "d" / "debris.png", grid("1 1 0 0"))
    assert convert(*words, "--overwrite", "--skip-unlabeled") == 2
    assert "1 of 3 labels without an image (d)" in capsys.readouterr().err


def test_mistakes(bowl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--object-masks", bowl, "--overlap", "error", "--output", bowl.parent / "out"]

    def error(*more: object) -> str:
        assert convert(*words, *more) == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "0c1.png: neither the file nor its folder is named after a class" in error("--things", "a,b")
    save(bowl / "id1" / "masks" / "5e2.png", grid("0 0 1 2\n0 0 0 0"))
    assert "5e2.png: found several values besides 0" in error("--things", "a")
    save(bowl / "id1" / "masks" / "5e2.png", grid("0 1"))
    assert "5e2.png is 2 x 1, its image 4 x 2 pixels" in error("--things", "a")
    save(bowl / "id1" / "masks" / "5e2.png", grid("1 0 0 0\n0 0 0 0"))
    assert "overlap in 1 pixels" in error("--things", "a")
    save_image(bowl / "id2" / "images" / "more.png", (1, 2))
    assert "images: found 2 images, expected the image of" in error("--things", "a")
    words[1] = bowl / "id1" / "masks"
    assert "found no folder ID/masks beside ID/images; if the images are elsewhere" in error("--things", "a")
    words[1] = bowl / "none"
    assert "found no such folder" in error("--things", "a")


def test_real_nuclei_survive_the_way_there_and_back(shared: Path, tmp_path: Path) -> None:
    """A panoptic set, written as masks per object and converted, has the same pixels: ten images with many nuclei."""
    root = shared / "data" / "nuclei"
    if not root.is_dir():
        pytest.skip("needs ../shared/data/nuclei (real microscopy images), which is not beside this checkout")
    content = json.loads((root / "panoptic_val.json").read_text())
    (nucleus,) = (one["id"] for one in content["categories"] if one["isthing"])
    file_of = {one["id"]: one["file_name"] for one in content["images"]}
    chosen = sorted(content["annotations"], key=lambda one: -len(one["segments_info"]))[:10]
    truth = {}
    for annotation in chosen:
        categories = {one["id"]: one["category_id"] for one in annotation["segments_info"]}
        ids = read_panoptic_ids(str(root / "panoptic_val" / annotation["file_name"]), categories)
        name = Path(file_of[annotation["image_id"]]).stem
        (tmp_path / "bowl" / name / "images").mkdir(parents=True)
        Image.open(root / "val" / f"{name}.png").save(tmp_path / "bowl" / name / "images" / f"{name}.png")
        things = [own_id for own_id, category_id in categories.items() if category_id == nucleus]
        for own_id in things:
            save(tmp_path / "bowl" / name / "masks" / f"{own_id:x}.png", (ids == own_id) * 255)
        truth[f"{name}/images/{name}.png"] = np.where(np.isin(ids, things), ids, 0)
    words = ("--object-masks", tmp_path / "bowl", "--things", "nucleus", "--background", "background")
    assert convert(*words, "--overlap", "error", "--output", tmp_path / "out") == 0
    maps = read_set(tmp_path / "out", tmp_path / "bowl")
    assert maps.keys() == truth.keys() and len(maps) == 10
    num_nuclei = 0
    for file_name, ids in truth.items():
        found = maps[file_name]
        assert np.array_equal(found == "background", ids == 0)
        pairs = set(zip(found.ravel().tolist(), ids.ravel().tolist()))
        assert len(pairs) == len({one for one, _ in pairs}) == len({one for _, one in pairs})  # one to one
        num_nuclei += len(pairs) - 1
    assert num_nuclei == sum(one["category_id"] == nucleus for two in chosen for one in two["segments_info"])
