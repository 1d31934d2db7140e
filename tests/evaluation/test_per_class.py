"""The table of the classes: whose figure stands where."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.data import MetadataCatalog

from psf.evaluation import ClassQuality, PanopticQualityEvaluator, SemanticEvaluator, write_per_class
from psf.evaluation.per_class import PER_CLASS_COLUMNS
from tests.mini_set import register_mini_set, unregister_mini_set, write_mini_set


@pytest.fixture
def mini(tmp_path: Path) -> Iterator[str]:
    write_mini_set(tmp_path / "mini")
    yield register_mini_set(tmp_path / "mini")
    unregister_mini_set()


RESULTS = {
    "segm": {"AP": 40.0, "AP-ball": 30.0, "AP-box": 50.0},
    "bbox": {"AP": 45.0, "AP-ball": math.nan, "AP-box": 55.5},
    "sem_seg": {"mIoU": 60.0, "IoU-sky": 90.0, "IoU-ball": 70.0},
}


def read(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(tuple(row) == PER_CLASS_COLUMNS for row in rows)
    return {row["class"]: {key: value for key, value in row.items() if value} for row in rows}


def test_all_figures(mini: str, tmp_path: Path):
    evaluator = PanopticQualityEvaluator(mini)
    # Category 3, ball: IoU sum 1.5 over 2 + 0.5 * 1 + 0.5 * 3 = 4.
    evaluator.per_class = {3: ClassQuality(tp=2, fp=1, fn=3, iou_sum=1.5), 5: ClassQuality(), 7: ClassQuality(fn=1)}
    evaluator.boundary_per_class = {3: ClassQuality(tp=1, fp=2, fn=4, iou_sum=0.8)}
    path = tmp_path / "new" / "per_class.csv"
    write_per_class(path, mini, RESULTS, evaluator)
    table = read(path)
    assert list(table) == ["sky", "ball", "ground", "box", "cloud"]  # as in the JSON
    ball = {"class": "ball", "category_id": "3", "kind": "thing", "PQ": "37.5000", "SQ": "75.0000", "RQ": "50.0000"}
    ball |= {"TP": "2", "FP": "1", "FN": "3", "boundary_PQ": "20.0000", "mask_AP": "30.0000", "IoU": "70.0000"}
    assert table["ball"] == ball
    box = {"class": "box", "category_id": "5", "kind": "thing", "mask_AP": "50.0000", "box_AP": "55.5000"}
    assert table["box"] == box
    sky = {"PQ": "0.0000", "SQ": "0.0000", "RQ": "0.0000", "TP": "0", "FP": "0", "FN": "1", "IoU": "90.0000"}
    assert table["sky"] == {"class": "sky", "category_id": "7", "kind": "stuff", **sky}


def test_the_only_thing_has_the_mean(mini: str, tmp_path: Path):
    """Detectron2 gives no figures per class where there is one."""
    vars(MetadataCatalog.get(mini))["thing_dataset_id_to_contiguous_id"] = {3: 1}
    write_per_class(tmp_path / "one.csv", mini, {"segm": {"AP": 40.0}}, None)
    assert read(tmp_path / "one.csv")["ball"]["mask_AP"] == "40.0000"


def test_two_classes_of_one_name(mini: str, tmp_path: Path):
    """Sets of other plugins may have them; the position tells them apart."""
    vars(MetadataCatalog.get(mini)).update(
        {key: ["x", "x", "a", "x", "b"] for key in ("thing_classes", "stuff_classes")}
    )
    results = {
        "sem_seg": {"IoU-x (id 0)": 10.0, "IoU-x (id 1)": 20.0},
        "segm": {"AP-x (id 1)": 30.0, "AP-x (id 3)": 40.0},
    }
    write_per_class(tmp_path / "two.csv", mini, results, None)
    table = read(tmp_path / "two.csv")
    assert table["x (id 0)"]["IoU"] == "10.0000" and table["x (id 3)"]["mask_AP"] == "40.0000"
    assert table["x (id 1)"]["IoU"] == "20.0000" and table["x (id 1)"]["mask_AP"] == "30.0000"
    assert SemanticEvaluator(mini)._names == list(table) and len(table) == 5
