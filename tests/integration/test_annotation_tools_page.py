"""docs/annotation-tools.md: its commands run, one after the other, and the sets that they make train."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from psf.commands import load_command
from psf.commands.training.train import main as psf_train
from psf.output import ANNOTATION_KINDS
from psf.structures import ClassEntry
from psf.tools.dataset_validation.validation import validate_panoptic
from tests.integration.test_readme import shown_commands
from tests.model_files import EASY, noise, write_model_file
from tests.models import tiny_config

pytestmark = pytest.mark.usefixtures("one_core")

CLASSES = [
    *(ClassEntry(True, i, i + 1, (200, 40 * i, 0), name) for i, name in enumerate(("car", "person", "bicycle"))),
    *(ClassEntry(False, i, i + 1, (0, 40 * i, 9), name) for i, name in enumerate(("sky", "grass", "road", "sea"), 3)),
]
# Files that a user would have exported from the tools; here they are the files for the import.
EXPORTS = {"annotations.xml": "out/cvat/annotations.xml", "export.json": "out/label-studio/tasks.json"}
# Name of a converted set in the page -> folder of its images.
SETS = {
    "mine/round2_coco": "photos",
    "mine/round2_labelme": "photos",
    "mine/round2_cvat": "photos",
    "mine/round2_ls": "photos",
    "mine/round2_yolo": "out/yolo/images/train",
}


@pytest.fixture
def commands(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """The commands of the page; the current folder has what they need."""
    keys = {**EASY, "CLASSES": [str(one) for one in CLASSES], "NUM_THING_CLASSES": -1, "NUM_STUFF_CLASSES": -1}
    write_model_file(tmp_path / "output" / "mine", keys)
    (tmp_path / "photos").mkdir()
    for number, name in enumerate("ab"):
        Image.fromarray(noise(seed=number)).save(tmp_path / "photos" / f"{name}.jpg")
    images = [{"id": 9, "file_name": "b.jpg", "height": 64, "width": 96}]
    categories = [{"id": 1, "name": "car", "isthing": 1}]
    (tmp_path / "more.json").write_text(json.dumps({"images": images, "annotations": [], "categories": categories}))
    (tmp_path / "stuff.txt").write_text("".join(f"{one.category_id},{one.name}\n" for one in CLASSES[3:]))
    lines = "".join(f"{one.name},{int(one.is_thing)}\n" for one in CLASSES)
    (tmp_path / "classes.csv").write_text(f"name,isthing\n{lines}")
    cfg = tiny_config(
        {"NUM_THING_CLASSES": -1, "NUM_STUFF_CLASSES": -1},
        DATALOADER__NUM_WORKERS=0,
        INPUT__MIN_SIZE_TRAIN=(32,),
        INPUT__CROP__ENABLED=False,
        SOLVER__IMS_PER_BATCH=2,
        SOLVER__MAX_ITER=2,
        SOLVER__STEPS=(),
        TEST__EVAL_PERIOD=0,
    )
    (tmp_path / "tiny.yaml").write_text(cfg.dump())
    monkeypatch.chdir(tmp_path)
    text = (repository / "docs" / "annotation-tools.md").read_text()
    blocks = "".join(f"```\n{block}```\n" for block in re.findall(r"```\n(psf .*?)```", text, re.S))
    return [(name, shlex.split(words)) for name, words in shown_commands(blocks)]


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    for catalog in (DatasetCatalog, MetadataCatalog):
        for name in {"round2", "more", *(Path(one).name for one in SETS)} & set(catalog):
            catalog.remove(name)


def train(json_file: str, pngs: str, images: str, name: str, tmp_path: Path) -> None:
    """Two iterations, with the config of a tiny model."""
    words = ["--config-file", "tiny.yaml", "--num-gpus", "0", "--register", f"{name}={json_file},{pngs},{images}"]
    output = tmp_path / "trained" / name
    assert psf_train([*words, "DATASETS.TRAIN", name, "DATASETS.TEST", "()", "OUTPUT_DIR", str(output)]) == 0
    assert (output / "model_final.pth").is_file()


def test_commands_and_sets(commands: list[tuple[str, list[str]]], tmp_path: Path) -> None:
    for name, words in commands:
        for target, source in EXPORTS.items():
            if target in words:
                shutil.copy(source, target)
        if name == "train":
            words = ["--num-gpus", "0", *["tiny.yaml" if word.startswith("small/") else word for word in words]]
        assert load_command(name).main(words) == 0, (name, words)
    assert (tmp_path / "output" / "round2" / "model_final.pth").is_file()
    more = json.loads(Path("out_more/coco-panoptic/panoptic.json").read_text())
    assert [(one["id"], one["file_name"]) for one in more["images"]] == [(9, "b.jpg")]
    saved = [words[words.index("--save") + 1] for _, words in commands if "--save" in words]
    assert set(",".join(saved).split(",")) == set(ANNOTATION_KINDS)
    for folder, images in SETS.items():
        report = validate_panoptic(f"{folder}/panoptic.json", f"{folder}/panoptic", images)
        assert report.is_clean and len(report.content["annotations"]) == 2, (folder, report)
        train(f"{folder}/panoptic.json", f"{folder}/panoptic", images, Path(folder).name, tmp_path)
