"""The record that a run goes on with, and what is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from psf.robustness import RobustnessRecord, draw_chart, robustness_table

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


def test_is_read_again(record: RobustnessRecord):
    again = RobustnessRecord(record.path, ABOUT)
    assert again.clean_figure() == 50 and again.get("snow", 5) == {"PQ": 10}
    assert again.get("snow", 2) is None
    assert [path.name for path in record.path.parent.iterdir()] == ["record.json"]


def test_other_measurements_are_refused(record: RobustnessRecord):
    with pytest.raises(ValueError, match=r"measured with weights 'a\.pth', this run has 'b\.pth'"):
        RobustnessRecord(record.path, {**ABOUT, "weights": "b.pth"})
    with pytest.raises(ValueError, match="measured with num_images None, this run has 3"):
        RobustnessRecord(record.path, {**ABOUT, "num_images": 3})
    for content in ("{", "[]", "{}"):
        record.path.write_text(content)
        with pytest.raises(ValueError, match="no record of a robustness evaluation"):
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
