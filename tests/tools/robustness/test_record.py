"""The record that a run goes on with, and what is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from psf.tools.robustness import RobustnessRecord, draw_chart, robustness_table

ABOUT = {"weights": "a.pth", "num_images": None}


@pytest.fixture
def record(tmp_path: Path) -> RobustnessRecord:
    """Clean 50; fog 40 and 20; snow 20 and 10; spatter at one severity alone."""
    record = RobustnessRecord(tmp_path / "folder" / "record.json", ABOUT)
    record.add({"PQ": 50.0, "SQ": 80.0})
    for name, severity, figure in (
        ("fog", 1, 40.0),
        ("fog", 5, 20.0),
        ("snow", 1, 20),
        ("snow", 5, 10),
        ("spatter", 1, 9),
    ):
        record.add({"PQ": figure}, name, severity)
    return record


def test_tuples_are_read_again_as_what_they_were(tmp_path: Path):
    about = {"MIN_SIZES": (1, 2)}
    RobustnessRecord(tmp_path / "record.json", about).add({"PQ": 1.0})
    assert RobustnessRecord(tmp_path / "record.json", about).clean_figure() == 1


def test_is_read_again(record: RobustnessRecord):
    again = RobustnessRecord(record.path, ABOUT)
    assert again.clean_figure() == 50 and again.get("snow", 5) == {"PQ": 10}
    assert again.get("snow", 2) is None
    assert [path.name for path in record.path.parent.iterdir()] == ["record.json"]


def test_other_measurements_are_refused(record: RobustnessRecord):
    with pytest.raises(ValueError, match=r"measured with weights 'a\.pth' \(this run has 'b\.pth'\);"):
        RobustnessRecord(record.path, {**ABOUT, "weights": "b.pth"})
    more = {"weights": "b.pth", "num_images": 3, "MIN_SIZES": (2, 3)}
    all_of_them = r"'b\.pth'\), num_images None \(this run has 3\), MIN_SIZES None \(this run has \[2, 3\]\); use"
    with pytest.raises(ValueError, match=all_of_them):
        RobustnessRecord(record.path, more)
    with pytest.raises(ValueError, match=r"key4 None \(this run has 4\) and 7 others; use"):
        RobustnessRecord(record.path, {**ABOUT, **{f"key{number}": number for number in range(12)}})
    for content in ("{", "[]", "{}", '{"about": 3, "results": {}}', '{"about": {}, "results": []}'):
        record.path.write_text(content)
        with pytest.raises(ValueError, match="not a record of a robustness evaluation"):
            RobustnessRecord(record.path, ABOUT)


def test_table(record: RobustnessRecord):
    """Means 30 and 15, of all 22.5; spatter is left out, for one severity of it is missing."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in robustness_table(record, [1, 5]).splitlines()]
    assert lines[2:] == [
        ["snow", "weather", "20.00", "10.00", "15.00", "30.00"],
        ["fog", "weather", "40.00", "20.00", "30.00", "60.00"],
        ["mean of 2", "", "", "", "22.50", "45.00"],
        ["clean", "", "", "", "50.00", ""],
    ]


def test_chart(record: RobustnessRecord, tmp_path: Path):
    draw_chart(record, [1, 5], tmp_path / "chart.png")
    empty = RobustnessRecord(tmp_path / "none.json", ABOUT)
    draw_chart(empty, [1], tmp_path / "empty.png")
    assert "clean" in robustness_table(empty, [1])
    with Image.open(tmp_path / "chart.png") as chart, Image.open(tmp_path / "empty.png") as blank:
        assert chart.size == blank.size and chart.tobytes() != blank.tobytes()


def test_chart_tells_severities_apart(tmp_path: Path):
    """Two records of the same mean and the same figures, at other severities."""
    pictures = []
    for name, figures in (("down", (40.0, 20.0)), ("up", (20.0, 40.0))):
        record = RobustnessRecord(tmp_path / f"{name}.json", ABOUT)
        for severity, figure in zip((1, 2), figures, strict=True):
            record.add({"PQ": figure}, "fog", severity)
        draw_chart(record, [1, 2], tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as picture:
            pictures.append(picture.tobytes())
    assert pictures[0] != pictures[1]
