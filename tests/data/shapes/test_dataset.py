"""The generated scenes, and the splits of them that are written to files."""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from panopticapi.evaluation import pq_compute_single_core
from PIL import Image

from psf.data import panoptic_metadata
from psf.data.shapes import Scene, make_scene
from psf.data.shapes import dataset as shapes
from psf.data.shapes.drawing import OUTLINES, TEXTURES
from psf.data.shapes.scene import CATEGORIES
from psf.errors import UserError


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene(index, split="val") for index in range(200)]


def things_of(scene: Scene) -> list[dict]:
    return [segment for segment in scene.segments if segment["isthing"] and not segment["iscrowd"]]


def test_a_scene_is_the_same_each_time_and_no_other():
    scene, again = (make_scene(5, split="train") for _ in range(2))
    assert (scene.image == again.image).all() and (scene.labels == again.labels).all()
    assert scene.segments == again.segments
    for other in (make_scene(6, split="train"), make_scene(5, split="val"), make_scene(5, split="train", seed=1)):
        assert other.image.shape != scene.image.shape or (other.image != scene.image).any()


def test_splits_share_no_scene():
    count = 60
    images = {make_scene(i, split=split).image.tobytes() for split in shapes.NUM_SCENES for i in range(count)}
    assert len(images) == count * len(shapes.NUM_SCENES)


def test_labels_and_segments_agree(scenes):
    for scene in scenes:
        assert scene.image.dtype == scene.labels.dtype == np.uint8
        assert scene.image.shape == (*scene.labels.shape, 3)
        assert max(scene.labels.shape) <= 128
        assert [segment["id"] for segment in scene.segments] == list(range(1, len(scene.segments) + 1))
        areas = np.bincount(scene.labels.ravel(), minlength=len(scene.segments) + 1)
        assert len(areas) == len(scene.segments) + 1 and (areas[1:] >= 20).all()
        stuff = [segment["category_id"] for segment in scene.segments if not segment["isthing"]]
        assert len(stuff) == len(set(stuff))  # one segment for a stuff class
        for segment in scene.segments:
            assert bool(CATEGORIES[segment["category_id"]]["isthing"]) == segment["isthing"]


def test_what_coco_has_and_toys_forget_occurs(scenes):
    def share(holds) -> float:
        return sum(map(holds, scenes)) / len(scenes)

    assert 0.04 < share(lambda s: not any(segment["isthing"] for segment in s.segments)) < 0.2
    assert 0.04 < share(lambda s: sum(not segment["isthing"] for segment in s.segments) == 1) < 0.25
    assert 0.04 < share(lambda s: any(segment["iscrowd"] for segment in s.segments)) < 0.2
    assert 0.15 < share(lambda s: (s.labels == 0).any()) < 0.5
    assert 0.1 < share(lambda s: s.labels.shape != (128, 128)) < 0.5
    assert 0.1 < share(lambda s: max(Counter(t["category_id"] for t in things_of(s)).values(), default=0) >= 3) < 0.6


def test_things_are_of_very_different_sizes(scenes):
    areas = np.array([(s.labels == t["id"]).sum() for s in scenes for t in things_of(s)])
    assert 3 < len(areas) / len(scenes) < 5
    assert 0.5 < (areas < 500).mean() < 0.75
    assert (areas < 100).mean() > 0.08
    assert (areas > 1024).mean() > 0.1


def test_every_class_is_frequent(scenes):
    count = Counter(segment["category_id"] for scene in scenes for segment in scene.segments)
    assert min(count[category] for category in range(len(CATEGORIES))) > len(scenes) / 4


def test_things_of_one_kind_touch_each_other(scenes):
    def num_touching(scene: Scene) -> int:
        kind = np.array([0] + [s["category_id"] + 1 if s["isthing"] else 0 for s in scene.segments])
        left, right = scene.labels[:, :-1], scene.labels[:, 1:]
        return int(((left != right) & (kind[left] > 0) & (kind[left] == kind[right])).any())

    assert sum(map(num_touching, scenes)) > len(scenes) / 8


def test_category_ids_have_gaps_and_kinds_alternate():
    ids = [category["id"] for category in CATEGORIES]
    assert ids == sorted(set(ids)) and ids[-1] > len(ids)
    kinds = [category["isthing"] for category in CATEGORIES]
    assert sum(a != b for a, b in pairwise(kinds)) > 4 and kinds[0] == 0
    assert {category["name"] for category in CATEGORIES} == {*TEXTURES, *OUTLINES}


def test_scenes_are_those_of_this_version():
    """If this fails, the scenes have changed: raise shapes.VERSION, lest old files be read, and renew the numbers."""
    assert shapes.VERSION == 1
    expected = {  # index: (mean brightness, [(class, pixels), ...])
        2: (117.4, [("checks", 5110), ("grain", 10135), ("rectangle", 1022)]),
        3: (91.9, [("checks", 2394), ("dots", 4231), ("stripes", 1699), ("grain", 3335), ("star", 629)]),
    }
    for index, (brightness, segments) in expected.items():
        scene = make_scene(index, split="val")
        # Other versions of OpenCV and NumPy may round otherwise, but do not draw another scene.
        assert scene.image.mean() == pytest.approx(brightness, abs=1)
        assert [CATEGORIES[s["category_id"]]["name"] for s in scene.segments] == [name for name, _ in segments]
        areas = [int((scene.labels == s["id"]).sum()) for s in scene.segments]
        assert areas == pytest.approx([area for _, area in segments], rel=0.05)


@pytest.mark.parametrize("split", shapes.NUM_SCENES)
def test_registered_with_full_metadata(split):
    name = f"psf_shapes_{split}"
    assert name in DatasetCatalog
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == metadata.stuff_classes == [category["name"] for category in CATEGORIES]
    assert metadata.thing_colors == metadata.stuff_colors == [category["color"] for category in CATEGORIES]
    things, stuff = metadata.thing_dataset_id_to_contiguous_id, metadata.stuff_dataset_id_to_contiguous_id
    assert not things.keys() & stuff.keys()
    assert sorted([*things.values(), *stuff.values()]) == list(range(len(CATEGORIES)))
    assert (metadata.ignore_label, metadata.label_divisor) == (255, 1000)
    assert metadata.evaluator_type == "coco_panoptic_seg"
    if split != "train":
        folder = shapes.cache_root() / f"shapes-v{shapes.VERSION}-{split}"
        assert (metadata.image_root, metadata.panoptic_root) == (str(folder / "images"), str(folder / "panoptic"))
        assert metadata.panoptic_json == str(folder / "panoptic.json")
    shapes.register_shapes()  # a second time changes nothing, and raises nothing


def test_training_dicts_hold_no_files():
    dicts = DatasetCatalog.get("psf_shapes_train")
    assert len(dicts) == shapes.NUM_SCENES["train"]
    assert dicts[3]["psf_scene"] == {"index": 3, "split": "train"} and dicts[3]["image_id"] == 3


def test_written_files_hold_the_scenes(tune_folder: Path):
    dicts = shapes.load_written_split("tune", tune_folder)
    assert len(dicts) == shapes.NUM_SCENES["tune"]
    for index in (0, 42, 99):
        scene, written = make_scene(index, split="tune"), dicts[index]
        assert (np.asarray(Image.open(written["file_name"])) == scene.image).all()
        assert (written["height"], written["width"]) == scene.labels.shape
        png = np.asarray(Image.open(written["pan_seg_file_name"])).astype(int) @ [1, 256, 65536]
        assert len(written["segments_info"]) == len(scene.segments)
        for info, segment in zip(written["segments_info"], scene.segments):
            mask = png == info["id"]
            assert (mask == (scene.labels == segment["id"])).all()
            assert {key: info[key] for key in ("category_id", "isthing", "iscrowd")} == {
                key: segment[key] for key in ("category_id", "isthing", "iscrowd")
            }
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
            assert info["area"] == mask.sum() and info["bbox"] == box


def test_written_ground_truth_scores_100_against_itself(tune_folder: Path, capsys):
    content = json.loads((tune_folder / "panoptic.json").read_text())
    categories = {category["id"]: category for category in content["categories"]}
    pairs = [(annotation, annotation) for annotation in content["annotations"]]
    png_root = str(tune_folder / "panoptic")
    result = pq_compute_single_core(0, pairs, png_root, png_root, categories)
    average, _ = result.pq_average(categories, isthing=None)
    assert average["n"] == len(CATEGORIES)
    assert average["pq"] == average["sq"] == average["rq"] == 1.0
    assert any(segment["iscrowd"] for annotation in content["annotations"] for segment in annotation["segments_info"])


def test_files_are_written_once(tune_folder: Path, monkeypatch):
    monkeypatch.setattr(shapes, "_write_split", lambda *_: pytest.fail("written again"))
    assert len(shapes.load_written_split("tune", tune_folder)) == shapes.NUM_SCENES["tune"]


def test_who_is_late_in_a_race_takes_the_winners_files(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(shapes.NUM_SCENES, "tune", 2)
    write = shapes._write_split

    def overtaken(split: str, draft: Path) -> None:
        monkeypatch.setattr(shapes, "_write_split", write)
        shapes.load_written_split(split, tmp_path / "tune")  # the other process, from start to end
        (tmp_path / "tune" / "winner").touch()
        write(split, draft)

    monkeypatch.setattr(shapes, "_write_split", overtaken)
    assert len(shapes.load_written_split("tune", tmp_path / "tune")) == 2
    assert (tmp_path / "tune" / "winner").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["tune"]  # no draft is left behind


def test_interrupted_writing_leaves_nothing(tmp_path: Path, monkeypatch):
    def interrupted(split: str, draft: Path) -> None:
        draft.mkdir()
        (draft / "half").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "_write_split", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shapes.load_written_split("tune", tmp_path / "tune")
    assert not list(tmp_path.iterdir())


def test_cache_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file/psf/tune.*PSF_CACHE"):
        shapes.load_written_split("tune", tmp_path / "file" / "psf" / "tune")


def test_cache_follows_the_variables(monkeypatch):
    monkeypatch.setenv("PSF_CACHE", "/somewhere")
    assert shapes.cache_root() == Path("/somewhere")
    monkeypatch.delenv("PSF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert shapes.cache_root() == Path("/caches/psf")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert shapes.cache_root() == Path.home() / ".cache" / "psf"
    monkeypatch.setenv("PSF_CACHE", "~no-such-user/cache")
    with pytest.raises(UserError, match=r"~no-such-user/cache is below a home folder .*: set the variable PSF_CACHE"):
        shapes.cache_root()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_two_processes_may_write_at_once(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    start = context.Barrier(2)

    def race() -> None:
        start.wait(timeout=60)
        assert len(shapes.load_written_split("tune", tmp_path / "tune")) == 100

    racers = [context.Process(target=race) for _ in range(2)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(timeout=60)
    assert [racer.exitcode for racer in racers] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["tune"]
    assert len(list((tmp_path / "tune" / "panoptic").iterdir())) == 100


def test_metadata_do_not_share_lists():
    first, second = (panoptic_metadata(CATEGORIES) for _ in range(2))
    first["thing_classes"].append("x")
    assert "x" not in first["stuff_classes"] and "x" not in second["thing_classes"]


def test_no_home_folder_is_no_error_before_scenes_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "psf_shapes_val"
    monkeypatch.setenv("PSF_CACHE", "~no-such-user/cache")
    DatasetCatalog.remove(name)
    try:
        shapes.register_shapes()
        with pytest.raises(UserError, match="set the variable PSF_CACHE"):
            DatasetCatalog.get(name)
    finally:
        monkeypatch.undo()
        DatasetCatalog.remove(name)
        shapes.register_shapes()
