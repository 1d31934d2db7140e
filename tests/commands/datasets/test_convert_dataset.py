from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from psf.commands.datasets import convert_dataset as tool
from psf.tools.dataset_validation.validation import validate_panoptic
from tests.conftest import RunPython


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """A folder with an image, its instances in COCO's and in labelme's form, a semantic mask and labels."""
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg")
    square, larger = [2, 2, 8, 2, 8, 8, 2, 8], [5, 2, 20, 2, 20, 12, 5, 12]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 20, "width": 30}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": [square]},
            {"id": 2, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": [larger]},
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    shapes = [{"label": "cat", "points": np.reshape(one, (-1, 2)).tolist()} for one in (square, larger)]
    labelme = {"shapes": shapes, "imagePath": "a.jpg", "imageHeight": 20, "imageWidth": 30}
    (tmp_path / "labelme").mkdir()
    (tmp_path / "labelme" / "a.json").write_text(json.dumps({**labelme, "imagePath": "../a.jpg"}))
    (tmp_path / "masks").mkdir()
    Image.new("L", (30, 20), 3).save(tmp_path / "masks" / "a.png")
    (tmp_path / "stuff.txt").write_text("3,grass\n")
    (tmp_path / "things.txt").write_text("1,cat\n")
    return tmp_path


@pytest.mark.parametrize(
    "source", ["--instances instances.json", "--labelme labelme --image-root . --thing-labels things.txt"]
)
def test_the_same_set_from_either_form(drawn, monkeypatch, capsys, source):
    monkeypatch.chdir(drawn)
    order = f"{source} --semantic masks --semantic-labels stuff.txt --overlap smaller-on-top --output out"
    assert tool.main(shlex.split(order)) == 0
    out = capsys.readouterr().out
    assert "1 overlapping regions" in out and "psf validate --json out/panoptic.json" in out
    report = validate_panoptic("out/panoptic.json", "out/panoptic", ".")
    assert report.is_clean
    areas = sorted(one["area"] for one in report.content["annotations"][0]["segments_info"])
    assert areas == [36, 15 * 10 - 3 * 6, 20 * 30 - 36 - 132]  # the square, the larger one without it, grass

    assert tool.main(shlex.split(order)) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert tool.main(shlex.split(f"{order} --overwrite --workers 1")) == 0


def test_overlaps_may_be_refused(drawn, capsys):
    order = ["--instances", str(drawn / "instances.json"), "--overlap", "error", "--output", str(drawn / "out")]
    assert tool.main(order) == 2
    assert "error: a.jpg: a region of category 1" in (err := capsys.readouterr().err) and "--overlap" in err
    assert not (drawn / "out" / "panoptic.json").exists()


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("--instances x --output y", "--overlap is missing, --instances needs it: one of smaller-on-top"),
        ("--instances x --labelme z --overlap error --output y", "not allowed with"),
        ("--overlap error --output y", "one of the arguments --labels --object-masks --instances --labelme"),
        ("--instances x --overlap error --output y --semantic m", "--semantic needs --semantic-labels"),
        ("--instances x --overlap error --output y --thing-labels m", "--thing-labels needs --labelme;"),
        ("--instances x --overlap error --output y --image-root m", "--image-root needs --labels or --object-masks or"),
        ("--labelme x --overlap error --output y --crowds-as-things", "--crowds-as-things needs --instances;"),
        ("--labels x --classes c --overlap error --output y", "--overlap needs --object-masks or"),
        ("--labels x --output y", "--labels needs --classes, which defines"),
        ("--labels x --classes c --output y --semantic-labels z", "--semantic-labels needs --instances or --labelme;"),
        (
            "--labels x --classes c --output y --instance-ids z --encoding kitti",
            "--instance-ids needs --encoding class",
        ),
        ("--object-masks x --overlap error --output y", "--object-masks needs --things or --classes"),
        ('--object-masks x --overlap error --output y --things ""', "--object-masks needs --things or --classes"),
        ("--supervisely x --overlap error --output y --min-area 3", "--min-area needs --labels;"),
        ("--supervisely x --overlap error --output y --encoding foo", "invalid choice: 'foo'"),
    ],
)
def test_orders_that_make_no_sense(order, message, capsys):
    with pytest.raises(SystemExit) as caught:
        tool.main(shlex.split(order))
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_it_runs_as_a_command(run_python: RunPython, repository: Path, drawn):
    done = run_python(
        "-m", "psf", "convert-dataset", "--instances", str(drawn / "instances.json"),
        "--overlap", "later-on-top", "--output", str(drawn / "out"), path=[repository],
    )  # fmt: skip
    assert done.returncode == 0 and "2 segments" in done.stdout, done.stderr
