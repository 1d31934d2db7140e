"""`psf predict --save` in the formats of annotation tools: their files, and back to a set by `psf convert-dataset`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from panopticapi.utils import rgb2id
from PIL import Image
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

from psf.commands.datasets.convert_dataset import main as convert
from psf.commands.predicting.predict import KINDS
from psf.data.panoptic_labels import read_panoptic_ids
from psf.errors import UserError
from psf.output import ANNOTATION_KINDS, PanopticOutput
from psf.tools.dataset_validation.validation import validate_panoptic

ALL = ",".join(ANNOTATION_KINDS)
SKY, BALL = 40 * 90 - 5 * 16, 160  # pixels
# First column of the ball, by the names of the images and of YOLO's links to them.
LEFT = {"a.png": 20, "b/a.png": 30, "b/c d.png": 50, "a_2.png": 30, "c d.png": 50}


@pytest.fixture
def photos(image: Path, scene: Callable[..., np.ndarray]) -> Path:
    """A folder with a.png, b/a.png and b/c d.png, which differ in the position of the ball."""
    (image.parent / "b").mkdir()
    Image.fromarray(scene(left=30)).save(image.parent / "b" / "a.png")
    Image.fromarray(scene(left=50)).save(image.parent / "b" / "c d.png")
    return image.parent


@pytest.fixture
def predicted(run: Callable[..., int], photos: Path, out: Path) -> Callable[..., Path]:
    """`psf predict` on all photos with more words; returns the folder of results."""

    def predict(*words: str, expect: int = 0) -> Path:
        assert run("--input", photos / "**" / "*", "--output", out, *words) == expect
        return out

    return predict


def read_set(folder: Path, images: Path) -> dict[str, dict[str, list[np.ndarray]]]:
    """The masks of a converted set by image and class; `psf validate` finds the set clean."""
    report = validate_panoptic(str(folder / "panoptic.json"), str(folder / "panoptic"), str(images))
    assert report.is_clean, report
    content = report.content
    names = {one["id"]: one["name"] for one in content["categories"]}
    files = {one["id"]: one["file_name"] for one in content["images"]}
    found: dict[str, dict[str, list[np.ndarray]]] = {}
    for annotation in content["annotations"]:
        segments = {one["id"]: one for one in annotation["segments_info"]}
        ids = read_panoptic_ids(str(folder / "panoptic" / annotation["file_name"]), segments)
        masks = found.setdefault(files[annotation["image_id"]], {})
        for own_id, segment in segments.items():
            masks.setdefault(names[segment["category_id"]], []).append(ids == own_id)
    return found


def expected_masks(left: int) -> dict[str, np.ndarray]:
    ball = np.zeros((60, 90), bool)
    ball[35:45, left : left + 16] = True
    sky = np.zeros((60, 90), bool)
    sky[:40] = True
    return {"ball": ball, "sky": sky & ~ball}


def iou(found: np.ndarray, expected: np.ndarray) -> float:
    return float((found & expected).sum() / (found | expected).sum())


def convert_words(kind: str, out: Path, photos: Path) -> list[str]:
    """The arguments of `psf convert-dataset` for the files of a kind."""
    return {
        "coco-instance": ["--instances", f"{out}/coco-instance/instances.json"],
        "labelme": [
            "--labelme",
            f"{out}/labelme",
            "--image-root",
            f"{photos}",
            "--semantic-labels",
            f"{out}/stuff.txt",
        ],
        "cvat": ["--cvat", f"{out}/cvat/annotations.xml", "--image-root", f"{photos}", "--things", "ball"],
        "label-studio": [
            *("--label-studio", f"{out}/label-studio/tasks.json", "--image-root", f"{photos}", "--things", "ball")
        ],
        "yolo": ["--yolo", f"{out}/yolo/images/train"],
    }[kind]


@pytest.mark.parametrize("shapes", ["masks", "polygons"])
@pytest.mark.parametrize("kind", ["coco-instance", "labelme", "cvat", "label-studio", "yolo"])
def test_back_to_a_set(predicted: Callable[..., Path], photos: Path, tmp_path: Path, kind: str, shapes: str) -> None:
    """Masks come back exactly; polygons, which are simplified by up to a pixel, with an IoU of at least 0.8."""
    out = predicted("--save", kind, *(["--shapes", shapes] if kind != "yolo" else []))
    (out / "stuff.txt").write_text("1,sky\n")
    words = [*convert_words(kind, out, photos), "--overlap", "smaller-on-top", "--output", str(tmp_path / "set")]
    assert convert(words) == 0
    images = out / "yolo" / "images" / "train" if kind == "yolo" else photos
    found = read_set(tmp_path / "set", images)
    assert len(found) == 3
    for name, masks in found.items():
        for label, expected in expected_masks(LEFT[name]).items():
            if kind in ("yolo", "coco-instance") and label == "sky":
                assert label not in masks
                continue
            (mask,) = masks[label]
            is_exact = shapes == "masks" and kind != "yolo"
            assert iou(mask, expected) == 1 if is_exact else iou(mask, expected) >= 0.8, (name, label)


def test_panoptic_set(predicted: Callable[..., Path], photos: Path) -> None:
    """COCO's own tools and psf read it as it is; ids, areas and boxes are those of the PNGs."""
    folder = predicted("--save", "coco-panoptic") / "coco-panoptic"
    found = read_set(folder, photos)
    assert all((masks["ball"][0] | masks["sky"][0]).sum() == SKY + BALL for masks in found.values())
    content = json.loads((folder / "panoptic.json").read_text())
    assert [one["file_name"] for one in content["images"]] == ["a.png", "b/a.png", "b/c d.png"]
    assert [one["file_name"] for one in content["annotations"]] == ["a.png", "a_2.png", "c d.png"]
    assert {one["id"]: (one["name"], one["isthing"]) for one in content["categories"]} == {
        7: ("ball", 1),
        30: ("sky", 0),
    }
    for annotation in content["annotations"]:
        ids = rgb2id(np.array(Image.open(folder / "panoptic" / annotation["file_name"])))
        for segment in annotation["segments_info"]:
            assert (ids == segment["id"]).sum() == segment["area"]
        scores = {one["category_id"]: one["score"] for one in annotation["segments_info"]}
        assert scores == {7: pytest.approx(0.9), 30: pytest.approx(0.4)}


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_instances_of_coco(predicted: Callable[..., Path], task: str) -> None:
    path = predicted("--save", "coco-instance", "--task", task) / "coco-instance" / "instances.json"
    coco = COCO(str(path))
    annotations = coco.loadAnns(coco.getAnnIds())
    assert [one["id"] for one in annotations] == [1, 2, 3]
    assert [one["area"] for one in annotations] == [BALL] * 3
    assert [one["bbox"] for one in annotations] == [[left, 35, 16, 10] for left in (20, 30, 50)]
    for one in annotations:
        assert coco.annToMask(one).sum() == coco_masks.area(one["segmentation"]) == BALL
    assert coco.loadRes(annotations).getAnnIds() == [1, 2, 3]  # scores


def test_whole_things_of_the_task_instance(predicted: Callable[..., Path], photos: Path) -> None:
    out = predicted("--save", "labelme,cvat,label-studio,yolo", "--task", "instance")
    assert (out / "cvat" / "annotations.xml").read_text().count("<mask ") == 3
    regions = [one["predictions"][0]["result"] for one in json.loads((out / "label-studio/tasks.json").read_text())]
    assert [[one["value"]["brushlabels"] for one in task] for task in regions] == [[["ball"]]] * 3
    assert [one["label"] for one in json.loads((out / "labelme" / "a.json").read_text())["shapes"]] == ["ball"]
    assert len((out / "yolo" / "labels" / "train" / "a.txt").read_text().splitlines()) == 1


def test_labelme_finds_the_images(predicted: Callable[..., Path], photos: Path) -> None:
    folder = predicted("--save", "labelme") / "labelme"
    for name, image in (("a", "a.png"), ("a_2", "b/a.png"), ("c d", "b/c d.png")):
        content = json.loads((folder / f"{name}.json").read_text())
        assert (folder / content["imagePath"]).resolve() == (photos / image).resolve()
        assert content["shapes"][1]["description"] == "score 0.900"


def test_label_studio(predicted: Callable[..., Path]) -> None:
    folder = predicted("--save", "label-studio", "--image-prefix", "https://host/x/") / "label-studio"
    tasks = json.loads((folder / "tasks.json").read_text())
    assert [task["data"]["image"] for task in tasks] == [
        f"https://host/x/{name}" for name in ("a.png", "b/a.png", "b/c%20d.png")
    ]
    (prediction,) = tasks[0]["predictions"]
    assert prediction["score"] == pytest.approx(0.65)
    assert [one["value"]["brushlabels"] for one in prediction["result"]] == [["sky"], ["ball"]]
    config = (folder / "config.xml").read_text()
    assert 'toName="image"' in config and '<Label value="ball" background="#ff0000"' in config
    assert f'name="{prediction["result"][0]["from_name"]}"' in config


def test_yolo(predicted: Callable[..., Path], photos: Path) -> None:
    folder = predicted("--save", "yolo") / "yolo"
    assert (folder / "data.yaml").read_text().splitlines()[-2:] == ["names:", "  0: ball"]
    assert {link.name: link.resolve() for link in (folder / "images" / "train").iterdir()} == {
        "a.png": (photos / "a.png").resolve(),
        "a_2.png": (photos / "b" / "a.png").resolve(),
        "c d.png": (photos / "b" / "c d.png").resolve(),
    }
    (line,) = (folder / "labels" / "train" / "a.txt").read_text().splitlines()
    number, *values = line.split()
    points = np.array(values, float).reshape(-1, 2) * [90, 60]
    assert number == "0" and np.abs(np.ptp(points, axis=0) - [16, 10]).max() <= 1.5
    assert np.abs(points.min(axis=0) - [20, 35]).max() <= 1


def files_of(out: Path) -> dict[Path, bytes]:
    return {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_second_run_replaces_the_files_of_the_first(predicted: Callable[..., Path]) -> None:
    before = files_of(predicted("--save", ALL))
    assert files_of(predicted("--save", ALL)) == before


@pytest.mark.parametrize(
    "name",
    [
        "coco-panoptic/panoptic.json",
        "coco-panoptic/panoptic/a.png",
        "coco-instance/instances.json",
        "labelme/c d.json",
        "cvat/annotations.xml",
        "cvat/labels.json",
        "label-studio/tasks.json",
        "label-studio/config.xml",
        "yolo/data.yaml",
        "yolo/labels/train/a.txt",
    ],
)
def test_files_of_the_user_stay(
    predicted: Callable[..., Path],
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    """The command stops before it builds the model; --overwrite insists."""
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("somebody's")
    with monkeypatch.context() as patch:
        patch.setattr("psf.commands.predicting.predict.images.build_predictor", lambda args: pytest.fail("built"))
        predicted("--save", ALL, expect=2)
    assert f"{name} exists, and psf has not written it" in capsys.readouterr().err
    assert files_of(out) == {Path(name): b"somebody's"}
    predicted("--save", ALL, "--overwrite")
    assert (out / name).read_bytes() != b"somebody's"


@pytest.mark.parametrize("name", ["yolo", "yolo/images", "yolo/labels/train", "cvat", "coco-panoptic/panoptic"])
def test_links_in_the_place_of_folders(
    predicted: Callable[..., Path], out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "mine").mkdir()
    (out / name).parent.mkdir(parents=True)
    (out / name).symlink_to(tmp_path / "mine")
    predicted("--save", ALL, "--overwrite", expect=2)
    assert "link" in capsys.readouterr().err and not list((tmp_path / "mine").iterdir())


def test_results_of_another_image_stay(
    run: Callable[..., int], photos: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--input", photos / "a.png", "--output", out, "--save", "labelme,yolo") == 0
    for kind, message in (("labelme", "has the results of"), ("yolo", "is no link to")):
        assert run("--input", photos / "b" / "a.png", "--output", out, "--save", kind) == 2
        assert message in capsys.readouterr().err


def test_a_broken_image_is_in_no_file(
    predicted: Callable[..., Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "a.png").write_bytes(b"\x89PNG")
    out = predicted("--save", ALL, expect=1)
    assert len(json.loads((out / "coco-panoptic" / "panoptic.json").read_text())["images"]) == 2
    assert len(json.loads((out / "label-studio" / "tasks.json").read_text())) == 2
    found = read_set(out / "coco-panoptic", photos)
    assert set(found) == {"b/a.png", "b/c d.png"}
    assert convert(["--cvat", f"{out}/cvat/annotations.xml", "--overlap", "error", "--output", f"{tmp_path}/set"]) == 0
    assert "2 images" in capsys.readouterr().out


def test_ctrl_c_leaves_the_images_before(
    predicted: Callable[..., Path],
    photos: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    records, calls = PanopticOutput.records, []

    def interrupted(self: PanopticOutput) -> list[dict[str, Any]]:
        calls.append(self)
        if len(calls) == 9:  # of the second image, for the third format
            raise KeyboardInterrupt
        return records(self)

    monkeypatch.setattr(PanopticOutput, "records", interrupted)
    predicted("--save", "coco-panoptic,coco-instance,cvat,label-studio,labelme,yolo", expect=130)
    [line] = [one for one in capsys.readouterr().err.splitlines() if one.startswith("stopped by Ctrl-C: ")]
    assert "1 of 3 images written" in line and line.endswith("; the same command starts again")
    monkeypatch.setattr(PanopticOutput, "records", records)
    assert set(read_set(out / "coco-panoptic", photos)) == {"a.png", "b/a.png"}
    assert len(COCO(str(out / "coco-instance" / "instances.json")).imgs) == 2
    assert (out / "cvat" / "annotations.xml").read_text().count("<image ") == 1
    assert len(json.loads((out / "label-studio" / "tasks.json").read_text())) == 1
    for kind in ("cvat", "label-studio"):
        words = [*convert_words(kind, out, photos), "--overlap", "error", "--output", str(out / kind / "set")]
        assert convert(words) == 0


def test_an_image_that_a_format_cannot_hold_is_skipped(
    predicted: Callable[..., Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: PanopticOutput) -> np.ndarray:
        raise UserError("no")

    monkeypatch.setattr(PanopticOutput, "label_image", refuse)
    predicted("--save", "coco-panoptic", expect=1)
    assert not (out / "coco-panoptic" / "panoptic.json").exists()


def test_a_dataset_as_input(
    run: Callable[..., int], predicted: Callable[..., Path], photos: Path, tmp_path: Path, out: Path
) -> None:
    """Ids and file names are those of the dataset, and its PNGs are not needed."""
    folder = predicted("--save", "coco-panoptic") / "coco-panoptic"
    content = json.loads((folder / "panoptic.json").read_text())
    for image in content["images"]:
        image["id"] += 100
    content["images"].reverse()
    (tmp_path / "images.json").write_text(json.dumps({**content, "annotations": []}))
    words = ("--register", f"psf_test_input={tmp_path}/images.json,{photos},{photos}", "--dataset", "psf_test_input")
    assert run(*words, "--output", tmp_path / "again", "--save", "coco-panoptic,label-studio") == 0
    again = json.loads((tmp_path / "again" / "coco-panoptic" / "panoptic.json").read_text())
    assert again["images"] == content["images"]
    assert [one["image_id"] for one in again["annotations"]] == [103, 102, 101]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--save", "coco-panoptic", "--task", "instance"], "--save coco-panoptic has no effect with --task instance"),
        (["--save", "cvat", "--task", "semantic"], "--save cvat has no effect with --task semantic"),
        (["--save", "json", "--shapes", "polygons"], "--shapes needs --save coco-instance, labelme, cvat or"),
        (["--save", "cvat", "--image-prefix", "x"], "--image-prefix needs --save label-studio"),
        (["--dataset", "x"], "found both: name images"),
    ],
)
def test_mistakes(
    run: Callable[..., int], image: Path, out: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert run(image, "--output", out, *words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not out.exists()


def test_an_unknown_dataset(run: Callable[..., int], out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--dataset", "psf_test_unknown", "--output", out) == 2
    assert "no dataset is called 'psf_test_unknown': add --register" in capsys.readouterr().err


def test_names_that_text_formats_cannot_hold(
    run: Callable[..., int], photos: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(photos / "a.png", photos / "x\n.png")
    assert run(photos, "--output", out, "--save", "cvat") == 2
    assert "its name has control characters" in capsys.readouterr().err
    assert KINDS[-6:] == tuple(ANNOTATION_KINDS)
