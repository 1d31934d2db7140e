"""A panoptic set that nobody registered in Python: trained, evaluated and shown by command lines alone."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from psf.commands import load_command
from psf.commands.training.train import main as psf_train
from psf.engine import build_config
from psf.meta_arch.recipe import check_recipe
from psf.tools.dataset_conversion.label_images import ENCODINGS
from psf.tools.dataset_validation.validation import validate_panoptic
from tests.conftest import RunPython
from tests.engine.conftest import CONFIG
from tests.mini_set import CATEGORIES, NAME, write_mini_set
from tests.models import tiny_config
from tests.tools.dataset_conversion.label_files import grid, read_set, save, save_image

pytestmark = pytest.mark.usefixtures("one_core")

OTHER = "psf_test_other"
TASKS = {"panoptic_seg": "PQ", "segm": "AP", "sem_seg": "mIoU"}


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """The set is for one test, and loggers that Detectron2 set up, too."""
    yield
    for catalog in (DatasetCatalog, MetadataCatalog):
        for name in {NAME, OTHER, "mine_train", "mine_val"} & set(catalog):
            catalog.remove(name)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The mini set (ids with gaps, stuff first), its images of several kinds and in sub-folders, like its PNGs."""
    root = tmp_path / "my data"
    write_mini_set(root)
    content = json.loads((root / "panoptic.json").read_text())
    folders = ("", "city", "field/deep")
    for number, (image, annotation) in enumerate(zip(content["images"], content["annotations"], strict=True)):
        picture = Image.open(root / "images" / image["file_name"])
        image["file_name"] = f"{folders[number % 3]}/{number}{('.JPG', '.png', '.bmp')[number % 3]}".lstrip("/")
        annotation["file_name"] = f"{folders[number % 3]}/{number}.png".lstrip("/")
        target = root / "images" / image["file_name"]
        target.parent.mkdir(parents=True, exist_ok=True)
        picture.save(target)
        target = root / "panoptic" / annotation["file_name"]
        target.parent.mkdir(parents=True, exist_ok=True)
        (root / "panoptic" / f"{number}.png").rename(target)
    (root / "panoptic.json").write_text(json.dumps(content))
    return root


def flag_of(root: Path) -> list[str]:
    return ["--register", f"{NAME}={root / 'panoptic.json'},{root / 'panoptic'},{root / 'images'}"]


@pytest.fixture
def psf_config(tmp_path: Path) -> str:
    """A narrow Panoptic SegFormer whose every mask becomes a segment; it names no dataset."""
    keys = {f"POST_PROCESSOR.{kind}.{key}": 0.0 for kind in ("THINGS", "STUFF") for key in ("T_CNF", "T_KEEP")}
    cfg = tiny_config(
        {"NUM_THING_CLASSES": -1, "NUM_STUFF_CLASSES": -1, **keys},
        DATALOADER__NUM_WORKERS=0,
        INPUT__MIN_SIZE_TRAIN=(32,),
        INPUT__MIN_SIZE_TEST=32,
        INPUT__CROP__ENABLED=False,
        SOLVER__IMS_PER_BATCH=2,
        SOLVER__MAX_ITER=2,
        SOLVER__STEPS=(),
    )
    path = tmp_path / "tiny.yaml"
    path.write_text(cfg.dump())
    return str(path)


def test_from_one_flag_to_the_demo(
    root: Path, psf_config: str, repository: Path, tmp_path: Path, run_python: RunPython
):
    """Train in two processes and evaluate; evaluate what the run saved, without the flag; demo."""
    output = tmp_path / "output"
    names = ["DATASETS.TRAIN", NAME, "DATASETS.TEST", NAME]
    run = ["--config-file", psf_config, *flag_of(root), "--num-gpus", "0", "--num-processes", "2", "--dist-url", "auto"]
    done = run_python("train_net.py", *run, *names, "OUTPUT_DIR", str(output), path=[repository])
    assert done.returncode == 0, done.stdout + done.stderr
    trained = json.loads((output / "results.json").read_text())
    for task, metric in TASKS.items():
        assert 0 <= trained[task][metric] <= 100, task
    assert {f"IoU-{name}" for name in ("sky", "ball", "ground", "box")} <= trained["sem_seg"].keys()

    weights = str(output / "model_final.pth")
    entry = torch.load(weights, weights_only=True)["psf_class_names"]
    assert entry == {"things": ["ball", "box"], "stuff": ["sky", "ground", "cloud"]}

    saved = ["--config-file", str(output / "config.yaml"), "--num-gpus", "0", "--eval-only"]
    assert psf_train([*saved, "MODEL.WEIGHTS", weights, "OUTPUT_DIR", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert again["panoptic_seg"] == pytest.approx(trained["panoptic_seg"])

    images = ["--input", str(root / "images" / "*.JPG"), "--output", str(tmp_path / "demo")]
    words = ["--config-file", psf_config, *flag_of(root), *images, "--opts", "MODEL.WEIGHTS", weights, *names]
    done = run_python("demo/demo.py", *words, path=[repository])
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "demo" / "0.json").read_text())
    assert found["segments_info"]
    names = {category["id"]: category["name"] for category in CATEGORIES}
    assert all(segment["class"] == names[segment["category_id"]] for segment in found["segments_info"])


@pytest.mark.parametrize("kind", [0, 1])
def test_one_kind_alone(kind: int, root: Path, tmp_path: Path):
    """Only things, only stuff; by a model that knows the colours, so that the figures are good ones."""
    content = json.loads((root / "panoptic.json").read_text())
    content["categories"] = [{**category, "isthing": kind} for category in content["categories"]]
    (root / "panoptic.json").write_text(json.dumps(content))
    config = tmp_path / "colors.yaml"
    register = f"DATASETS: {{PSF_REGISTER: ['{flag_of(root)[1]}'], "
    config.write_text(CONFIG.replace("DATASETS: {", register))
    run = ["--config-file", str(config), "--num-gpus", "0", "--eval-only", "OUTPUT_DIR", str(tmp_path / "output")]
    assert psf_train(run) == 0
    results = json.loads((tmp_path / "output" / "results.json").read_text())
    assert ("segm" in results) == bool(kind)
    assert results["sem_seg"]["mIoU"] > 30 and results["panoptic_seg"]["PQ"] > 20


def test_what_may_be_left_out_changes_nothing(root: Path, tmp_path: Path):
    """Colours are for pictures, areas and boxes are measured, flags may be booleans, ids of images texts."""
    config = tmp_path / "colors.yaml"
    config.write_text(CONFIG.replace("DATASETS: {", f"DATASETS: {{PSF_REGISTER: ['{flag_of(root)[1]}'], "))
    run = ["--config-file", str(config), "--num-gpus", "0", "--eval-only", "OUTPUT_DIR"]
    assert psf_train([*run, str(tmp_path / "whole")]) == 0
    content = json.loads((root / "panoptic.json").read_text())
    for category in content["categories"]:
        category["isthing"] = bool(category["isthing"])
    for annotation in content["annotations"]:
        annotation["image_id"] = f"{annotation['image_id']:03d}"
        for segment in annotation["segments_info"]:
            is_crowd = bool(segment["iscrowd"])
            for key in ("area", "bbox", "iscrowd"):
                del segment[key]
            segment.update({"iscrowd": True} if is_crowd else {})
    (root / "panoptic.json").write_text(json.dumps(content))
    assert psf_train([*run, str(tmp_path / "bare")]) == 0
    whole, bare = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "bare"))
    assert bare == whole and whole["panoptic_seg"]["PQ"] > 20


def test_fine_tuning_for_other_classes(root: Path, psf_config: str, tmp_path: Path):
    """Heads follow the names; who only evaluates and forgets DATASETS.TRAIN is told so."""
    run = ["--config-file", psf_config, *flag_of(root), "--num-gpus", "0"]
    keys = ["SOLVER.MAX_ITER", "1", "DATASETS.TRAIN", NAME, "OUTPUT_DIR"]
    assert psf_train([*run, *keys, str(tmp_path / "first")]) == 0
    content = json.loads((root / "panoptic.json").read_text())
    content["categories"] = [*content["categories"][::-1], {"id": 40, "name": "ring", "isthing": 1}]
    other = root / "other.json"
    other.write_text(json.dumps(content))
    run += ["--register", f"{OTHER}={other},{root / 'panoptic'},{root / 'images'}"]
    weights = ["MODEL.WEIGHTS", str(tmp_path / "first" / "model_final.pth")]
    keys[3] = OTHER
    assert psf_train([*run, *keys, str(tmp_path / "second"), *weights]) == 0
    log = (tmp_path / "second" / "log.txt").read_text()
    assert "box (1 -> 0), ball (0 -> 1)" in log and "cloud (2 -> 0), sky (0 -> 2)" in log
    assert "new" in log and "SKIPPED, AND LEFT" not in log
    saved = torch.load(tmp_path / "second" / "model_final.pth", weights_only=True)
    assert saved["psf_class_names"]["things"] == ["box", "ball", "ring"]


def test_classes_of_training_and_test(root: Path, psf_config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A config made for COCO, and only the test set changed."""
    run = ["--config-file", psf_config, *flag_of(root), "--num-gpus", "0", "--eval-only"]
    sets = ["DATASETS.TRAIN", "coco_2017_train_panoptic", "DATASETS.TEST", NAME]
    assert psf_train([*run, *sets, "OUTPUT_DIR", str(tmp_path / "output")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f'the things of "{NAME}" are not those of "coco_2017_train_panoptic"' in error and "2 against 80" in error


def test_predictions_where_there_is_no_ground_truth(root: Path, psf_config: str, tmp_path: Path):
    """Images and categories alone, as of COCO's test-dev; the folder of PNGs is that of the images."""
    content = json.loads((root / "panoptic.json").read_text())
    (root / "test.json").write_text(json.dumps({key: content[key] for key in ("categories", "images")}))
    register = ["--register", f"{NAME}={root / 'test.json'},{root / 'images'},{root / 'images'}"]
    output = tmp_path / "output"
    run = ["--config-file", psf_config, *register, "--num-gpus", "0", "--eval-only", "DATASETS.TEST", NAME]
    keys = ["DATASETS.TRAIN", NAME, "MODEL.PSF.TEST.WRITE_PANOPTIC", "True", "OUTPUT_DIR", str(output)]
    assert psf_train([*run, *keys]) == 0
    written = output / "inference" / NAME / "panoptic_predictions.json"
    predictions = json.loads(written.read_text())["annotations"]
    assert [one["image_id"] for one in predictions] == [image["id"] for image in content["images"]]
    assert all((written.with_suffix("") / one["file_name"]).is_file() for one in predictions)
    known = {category["id"] for category in content["categories"]}
    assert {segment["category_id"] for one in predictions for segment in one["segments_info"]} <= known


def test_the_page_about_it(repository: Path, tmp_path: Path):
    """Commands and config of docs/custom-data.md are understood, and the files that it names are there."""
    text = (repository / "docs" / "custom-data.md").read_text()
    commands = re.findall(r"^psf (train|evaluate|predict) (.*)$", text.replace("\\\n", ""), re.M)
    assert [name for name, _ in commands] == ["train", "evaluate", "predict", "train", "train", "train", "evaluate"]
    for name, words in commands:
        args = load_command(name).build_parser().parse_args(shlex.split(words))
        assert len(args.opts) % 2 == 0 and (args.config_file or args.model)
    sets, channels = (f"VERSION: 2\n{block}" for block in re.findall(r"```yaml\n(.*?)```", text, re.S))
    (tmp_path / "channels.yaml").write_text(channels)
    check_recipe(build_config(str(tmp_path / "channels.yaml")))
    (tmp_path / "page.yaml").write_text(sets)
    cfg = build_config(str(tmp_path / "page.yaml"))
    assert [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST] == ["mine_train", "mine_val"]
    assert {"mine_train", "mine_val"} <= set(DatasetCatalog)
    for name in set(re.findall(r"(?:configs|tools|demo)/[\w./-]+\.(?:yaml|py)", text)):
        assert (repository / name).is_file(), name


@pytest.fixture
def drawn(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What docs/custom-data.md calls its files, in the working folder: a set, CVAT's and labelme's files, labels."""
    monkeypatch.chdir(root)
    (root / "mine").mkdir()
    for old, new in (("panoptic.json", "val.json"), ("panoptic", "val_png"), ("images", "images")):
        (root / old).rename(root / "mine" / new)
    shutil.copy(root / "mine" / "val.json", root / "mine" / "train.json")
    shutil.copytree(root / "mine" / "val_png", root / "mine" / "train_png")
    left, right = [2, 2, 12, 2, 12, 12, 2, 12], [8, 8, 26, 8, 26, 18, 8, 18]
    categories = [{"id": 1, "name": "cat", "supercategory": ""}, {"id": 4, "name": "grass", "supercategory": ""}]
    images, annotations = [], []
    for number, part in enumerate(("train", "val"), 1):
        (root / "photos" / part).mkdir(parents=True)
        (root / "masks" / part).mkdir(parents=True)
        Image.new("RGB", (30, 20)).save(root / "photos" / part / "1.jpg")
        Image.new("L", (30, 20), 2).save(root / "masks" / part / "1.png")
        shapes = [
            {"label": name, "points": [*zip(one[::2], one[1::2])], "shape_type": "polygon"}
            for name, one in (("cat", left), ("grass", right))
        ]
        labelme = {"shapes": shapes, "imagePath": "1.jpg", "imageHeight": 20, "imageWidth": 30}
        (root / "photos" / part / "1.json").write_text(json.dumps(labelme))
        images.append({"id": number, "file_name": f"{part}/1.jpg", "height": 20, "width": 30})
        annotations += [
            {"id": len(annotations) + 1 + category, "image_id": number, "category_id": category, "segmentation": [one]}
            for category, one in ((1, left), (4, right))
        ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "instances_default.json").write_text(json.dumps(content))
    (root / "stuff.txt").write_text("# stuff.txt\n1,grass\n2,sky\n")
    (root / "things.txt").write_text("1,cat\n")
    return root


def test_the_tools_on_the_page_run(repository: Path, drawn: Path):
    """Each command of docs/custom-data.md that makes or validates a set; what they make is clean."""
    text = (repository / "docs" / "custom-data.md").read_text()
    (stuff,) = re.findall(r"```\n(# stuff\.txt\n.*?)```", text, re.S)
    assert (drawn / "stuff.txt").read_text() == stuff
    text = re.sub(r"^## From label images$.*?^## ", "", text, flags=re.S | re.M)  # below
    commands = re.findall(r"^psf (convert-dataset|validate) (.*)$", text.replace("\\\n", ""), re.M)
    assert [name for name, _ in commands].count("convert-dataset") == 6 and len(commands) == 9
    for name, words in commands:
        assert load_command(name).main(shlex.split(words)) == 0, words
    assert (drawn / "report.html").stat().st_size and (drawn / "mine" / "val_fixed.json").is_file()
    found = {}
    for place in sorted((drawn / "mine").glob("*/panoptic.json")):
        image_root = drawn / "photos"
        report = validate_panoptic(str(place), str(place.with_suffix("")), str(image_root))
        assert report.is_clean, place
        found[place.parent.name] = [(one.name, one.is_thing, one.segments) for one in report.classes]
    things_alone, labelled = [("cat", True, 2), ("grass", True, 2)], [("cat", True, 1), ("grass", False, 1)]
    assert found == {
        "cvat": things_alone,
        "labelme": things_alone,
        "drawn": [("cat", True, 2), ("grass", False, 2), ("sky", False, 0)],
        "masks": [("cat", True, 2), ("grass", False, 2), ("sky", False, 2)],
        "train": [*labelled, ("sky", False, 0)],
        "val": [*labelled, ("sky", False, 0)],
    }


def label_images(root: Path) -> None:
    """What the section "From label images" calls its files; every image is 4 x 1, with one thing or two."""
    save(root / "masks" / "a_mask.png", grid("7 26 24 255"))
    save_image(root / "photos" / "a.jpg", (1, 4))
    save(root / "VOC2012" / "SegmentationClass" / "1.png", grid("0 15 15 255"), "P")
    save(root / "VOC2012" / "SegmentationObject" / "1.png", grid("0 1 2 255"), "P")
    for name in ("1.jpg", "unlabeled.jpg"):
        save_image(root / "VOC2012" / "JPEGImages" / name, (1, 4))
    names = root / "VOC2012" / "ImageSets" / "Segmentation" / "val.txt"
    names.parent.mkdir(parents=True)
    names.write_text("1\n")
    (root / "voc.csv").write_text("name,value,isthing\nbackground,0,0\nperson,15,1\n")
    save(root / "gtFine" / "val" / "ulm" / "1_gtFine_instanceIds.png", grid("7 26000 26001 3"), "I;16")
    save(root / "gtFine" / "val" / "ulm" / "1_gtFine_labelIds.png", grid("7 26 26 3"))
    save_image(root / "leftImg8bit" / "val" / "ulm" / "1_leftImg8bit.png", (1, 4))
    (root / "street.csv").write_text("name,value,isthing\nroad,7,0\ncar,26,1\n")
    save(root / "vistas" / "validation" / "v1.2" / "instances" / "1.png", grid("0 256 257 0"), "I;16")
    save_image(root / "vistas" / "validation" / "images" / "1.jpg", (1, 4))
    labels = [{"name": "sky", "instances": False}, {"name": "car", "instances": True}]
    (root / "vistas" / "config_v1.2.json").write_text(json.dumps({"labels": labels}))
    save(root / "cells" / "ids" / "1.png", grid("0 300 7 0"), "I;16")
    save_image(root / "cells" / "images" / "1.jpg", (1, 4))
    (root / "cells.csv").write_text("name,value,isthing\ncell,,1\nmedium,0,0\n")
    save_image(root / "stage1_train" / "x" / "images" / "x.png", (1, 4))
    for position in (1, 2):
        save(root / "stage1_train" / "x" / "masks" / f"{position}.png", grid("0 0 0 0") + 255 * np.eye(4)[[position]])
    save_image(root / "project" / "ds" / "img" / "1.png", (1, 4))
    (root / "project" / "ds" / "ann").mkdir()
    classes = [{"title": name} for name in ("car", "person", "road")]
    (root / "project" / "meta.json").write_text(json.dumps({"classes": classes}))
    objects = [
        {"classTitle": name, "geometryType": "rectangle", "points": {"exterior": [[x, 0], [x, 0]], "interior": []}}
        for x, name in enumerate(("road", "car", "person"))
    ]
    annotation = {"size": {"height": 1, "width": 4}, "objects": objects}
    (root / "project" / "ds" / "ann" / "1.png.json").write_text(json.dumps(annotation))


def test_label_images_on_the_page(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command of the section "From label images", on files that are named as there; its table of classes."""
    monkeypatch.chdir(tmp_path)
    label_images(tmp_path)
    text = (repository / "docs" / "custom-data.md").read_text()
    (section,) = re.findall(r"^## From label images$(.*?)^## ", text, re.S | re.M)
    (table,) = re.findall(r"```\n(name,.*?)```", section, re.S)
    (tmp_path / "classes.csv").write_text(table)
    commands = re.findall(r"^psf convert-dataset (.*)$", section.replace("\\\n", ""), re.M)
    folders = {"voc": "VOC2012/JPEGImages", "street": "leftImg8bit/val", "vistas": "vistas/validation/images"}
    folders |= {"labels": "photos", "cells": "cells/images", "nuclei": "stage1_train", "supervisely": "project"}
    found = {}
    for words in commands:
        arguments = shlex.split(words)
        assert load_command("convert-dataset").main(arguments) == 0, words
        output = Path(arguments[arguments.index("--output") + 1])
        (found[output.name],) = read_set(output, tmp_path / folders[output.name]).values()
    assert {name: " ".join(one[0]) for name, one in found.items()} == {
        "labels": "road car1 person1 .",
        "voc": "background person1 person2 .",
        "street": "road car1 car2 .",
        "vistas": "sky car1 car2 sky",
        "cells": "medium cell1 cell2 medium",
        "nuclei": "background nucleus1 nucleus2 background",
        "supervisely": "road car1 person1 .",
    }
    encodings = re.findall(r"^\| `(\w+)` \|", section, re.M)
    assert encodings == list(ENCODINGS)
    assert found.keys() == folders.keys()


def test_the_python_of_the_docs(repository: Path, run_python: RunPython, tmp_path: Path) -> None:
    """docs/usage.md, "In your own Detectron2 project": the block as it stands, on the mini set."""
    write_mini_set(tmp_path / "mine")
    (tmp_path / "mine" / "panoptic.json").rename(tmp_path / "mine" / "train.json")
    (tmp_path / "mine" / "panoptic").rename(tmp_path / "mine" / "train_png")
    blocks = re.findall(r"```python\n(.*?)```", (repository / "docs" / "usage.md").read_text(), re.S)
    (block,) = (block for block in blocks if "get_cfg" in block)
    code = block + "\nassert len(losses) > 10 and all(loss.isfinite() for loss in losses.values()); print('done')"
    done = run_python("-W", "ignore", "-c", code, path=[repository], cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stderr
