"""docs/benchmarks.md has no number that a script has not measured."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def summary(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    folder, known = repository / "benchmarks", set(sys.modules)
    monkeypatch.syspath_prepend(folder)
    yield importlib.import_module("summary")
    for name in {path.stem for path in folder.glob("*.py")} - known:
        sys.modules.pop(name, None)


@pytest.fixture
def results(summary: ModuleType, tmp_path: Path) -> Path:
    """A copy of the committed results."""
    return Path(shutil.copytree(summary.RESULTS, tmp_path / "results"))


def rows(table: str) -> dict[str, tuple[str, str]]:
    """The first row of each device and name of results: (text, measured)."""
    found: dict[str, tuple[str, str]] = {}
    for line in table.splitlines():
        if line.startswith(("| CPU: ", "| GPU: ")):
            text, _, measured, name = (cell.strip() for cell in line.strip("|").split("|"))
            found.setdefault(f"{text[:3]} {name.strip('`')}", (text, measured))
    return found


def section(when: str, machine: str, number: float) -> str:
    """As loader.py writes it."""
    header = "|  | ms per image | ratio |\n|:--|--:|--:|\n"
    row = f"| psf: label map and boxes | 9.8 | {number:.3f} |\n"
    return f"## {when} UTC, commit abc1234\n\n{machine}\n\nconditions\n\n{header}{row}\n"


def test_the_page_is_what_the_script_writes(summary: ModuleType):
    page = summary.PAGE.read_text(encoding="utf-8")
    assert page == summary.updated(page, summary.RESULTS), "run `make bench-docs`"


def test_the_rest_of_the_page_has_no_measured_number(summary: ModuleType):
    """Numbers with a unit; the limit of `make gpu-check` is a setting."""
    page = summary.PAGE.read_text(encoding="utf-8")
    before, rest = page.split(summary.BEGIN)
    prose = before + rest.split(summary.END)[1]
    found = re.findall(r"\b\d[\d.,]*(?: ?(?:%|ms|s|[KMG]i?B)(?!\w)| (?:seconds|minutes|times|px)\b)", prose)
    assert found == ["8 minutes"]


def test_all_scripts_of_make_bench_have_rows(summary: ModuleType, repository: Path):
    makefile = (repository / "Makefile").read_text().replace("\\\n", "")
    [line] = [line for line in makefile.splitlines() if line.startswith("BENCHMARKS :=")]
    scripts = {item.partition(":")[0] for item in line.split()[2:]}
    assert {table.name for table in summary.TABLES if table.device == "CPU"} == scripts


def test_each_row_is_measured_if_its_script_has_run(summary: ModuleType):
    """summary.number ends the script for a row or column that the table lacks, unless the row is optional."""
    text = summary.summary(summary.RESULTS)
    for table in summary.TABLES:
        has_run = summary.newest(summary.RESULTS, table.name, table.device) is not None
        [measured] = [m for name, (_, m) in rows(text).items() if name == f"{table.device} {table.name}"]
        if not table.rows[0].optional:
            assert (measured != "not measured") == has_run


def test_a_changed_number_changes_the_page(summary: ModuleType, results: Path):
    before = rows(summary.summary(results))
    [*_, file] = sorted(results.glob("*_merging.md"))
    text = file.read_text()
    cells = next(line for line in text.splitlines()[::-1] if "merging alone" in line).split("|")
    cells[4] = " 0.775 "
    changed = re.sub(r"\| merging alone.*", "|".join(cells), text)
    file.write_text(changed)
    after = rows(summary.summary(results))
    assert {name for name in before if before[name] != after[name]} == {"CPU merging"}
    assert after["CPU merging"][1] == "**0.78**"  # above the target


def test_the_newest_section_of_the_device_counts(summary: ModuleType, tmp_path: Path):
    cpu, gpu = "Some CPU, Python 3.12.1, torch 2.9.0+cu128", "Some CPU, Python 3.12.1, torch 2.9.0+cu128, NVIDIA H200"
    parts = [
        section("2026-11-22 15:00", cpu, 0.12),
        section("2026-11-22 14:00", cpu, 0.34),
        section("2026-11-22 16:00", gpu, 0.56),
        "## 2026-11-22 17:00 UTC, commit abc1234: a note\n\nwithout a table\n",
    ]
    (tmp_path / "2026-11-22_loader.md").write_text("".join(parts))
    (tmp_path / "2026-11-21_loader.md").write_text(section("2026-11-21 23:59", cpu, 0.78))
    (tmp_path / "2026-11-23_other_loader.md").write_text(section("2026-11-23 10:00", cpu, 0.91))
    text = summary.summary(tmp_path)
    assert rows(text)["CPU loader"][1] == "0.12"
    assert f"* `loader`, CPU: 2026-11-22 15:00 UTC, commit abc1234; {cpu}; conditions" in text
    assert rows(text)["GPU merging"][1] == "not measured"


def test_a_gpu_fills_its_rows(summary: ModuleType, results: Path):
    [*older, file] = sorted(results.glob("*_merging.md"))
    for one in older:
        one.unlink()
    file.write_text(re.sub(r"(torch \S+)\n", r"\1, NVIDIA H200\n", file.read_text()))
    found = rows(summary.summary(results))
    assert found["GPU merging"][1] not in ("not measured", "") and found["CPU merging"][1] == "not measured"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("| ratio |", "| share |", 'loader on a CPU, 2026-11-22 15:00: expected a column "ratio"'),
        ("label map and boxes", "label map", "expected one row with .*label map and boxes.*, found 0"),
    ],
)
def test_a_renamed_row_or_column_ends_the_script(summary: ModuleType, tmp_path: Path, old: str, new: str, message: str):
    text = section("2026-11-22 15:00", "Some CPU, Python 3.12.1, torch 2.9.0", 0.12)
    assert old in text
    (tmp_path / "2026-11-22_loader.md").write_text(text.replace(old, new))
    with pytest.raises(SystemExit, match=message):
        summary.summary(tmp_path)
