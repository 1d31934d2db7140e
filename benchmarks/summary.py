#!/usr/bin/env python3
"""Write the table of docs/benchmarks.md from the newest results of each script.

    python benchmarks/summary.py          also the last step of `make bench`

A file of results has sections (report.py), each with a time, a machine and a table. Each of `TABLES` names a script and
a device, and its rows name cells of the table in the newest section of this script on this device. Without such a
section they are "not measured". A row or column that a section lacks ends the script, unless the row is optional.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import evaluation
import half_precision
import loader
import mask_decoder
import merging
import ms_deform_attn
import panoptic_quality
import serving
import start
import training_step
import whole_model
from report import HERE
from tabulate import tabulate

RESULTS = HERE / "results"
PAGE = HERE.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- begin: python benchmarks/summary.py -->\n", "<!-- end: python benchmarks/summary.py -->\n"
NOT_MEASURED = "not measured"
CPU, GPU = "CPU", "GPU"
# Names in older results, and their names today.
RENAMED = {"psf / peer": "psf / baseline", "what psf takes": "psf's choice"}


class Row(NamedTuple):
    """A row of the page: the cell of a column, in the one row of the table that has all of `cells`."""

    text: str
    cells: Sequence[str]
    target: float | None = None  # the number must not exceed it
    column: str = ""  # default: the table's
    over: Sequence[str] = ()  # divide by the number in the row that has these cells
    optional: bool = False  # "not measured" without the row: it needs a package or a file that may be missing
    digits: int = 2


class Table(NamedTuple):
    """Rows from the results of one name on one device."""

    name: str  # in report.report: the script's, unless it has several
    device: str
    column: str
    rows: Sequence[Row]


OURS, OFFICIAL, PLAIN = "psf's choice", ms_deform_attn.OFFICIAL, "grid_sample and plain decoder"
ENCODER, BOTH_PASSES = ms_deform_attn.ENCODER.name, "forward + backward"
GPU_ATTENTION = (ENCODER, "within 2 px")
BF16, FP16 = "bfloat16", "float16"
FORMULA, TRAINED, PIXELS = half_precision.FORMULA, half_precision.QUICKSTART, half_precision.PIXELS
HALF_PRECISION = (
    Row("bfloat16 against float32, formula-made model: % of pixels that differ", (FORMULA, BF16, PIXELS),
        half_precision.PIXELS_TARGET),
    Row("bfloat16 against float32, the quickstart's model: % of pixels that differ", (TRAINED, BF16, PIXELS),
        half_precision.PIXELS_TARGET, optional=True),
    Row("bfloat16 against float32, the quickstart's model: change of PQ", (TRAINED, BF16, half_precision.PQ),
        half_precision.PQ_TARGET, optional=True),
)  # fmt: skip
TABLES = (
    Table("ms_deform_attn", CPU, "/ reference", (
        Row("deformable attention, forward, encoder at 800 x 1216, over grid_sample", (ENCODER, "forward", OURS), 0.18),
        Row("... over torch-ms-deform-attn's C++", (ENCODER, "forward", OURS), 1.0, "ms",
            over=(ENCODER, "forward", OFFICIAL), optional=True),
        Row("... forward + backward, encoder at 400 x 608, over grid_sample",
            ("encoder, 400 x 608", BOTH_PASSES, OURS), 0.7),
        Row("... forward + backward, the tiny model's encoder", ("tiny encoder, batch 4", BOTH_PASSES, OURS), 1.0),
        Row("... forward + backward, the tiny model's location decoder",
            ("tiny location decoder, batch 4", BOTH_PASSES, OURS), 1.0),
    )),
    Table("whole_model", CPU, "", (
        Row("R50 at test, 800 x 1216: time over its own backbone's", ("float32",), whole_model.BACKBONE_TARGET,
            "x own backbone"),
        Row("... peak memory of the process, GB", ("float32",), whole_model.MEMORY_TARGET, "peak GB"),
        Row("... under bfloat16: time over the float32 backbone's", ("bfloat16",), column="x float32 backbone"),
        Row("... under bfloat16: peak memory of the process, GB", ("bfloat16",), column="peak GB"),
    )),
    Table("training_step", CPU, "psf / baseline", (
        Row("training step, R50, 512 x 768, over grid_sample and plain mask decoder", ("float32", PLAIN),
            training_step.TARGET_RATIO),
    )),
    Table("mask_decoder", CPU, "psf / plain", (
        Row("mask decoders in training, 512 x 768, over the plain decoder: bytes kept for backward",
            ("training, both", "kept, MB"), mask_decoder.KEPT_TARGET),
        Row("... at test, 800 x 1216: time", ("test, both", "ms")),
    )),
    Table("merging", CPU, "psf / plain", (
        Row("merging alone, masks at full size, over the plain loop", ("merging alone, masks at full size",),
            merging.CPU_TARGET),
        Row("... from the 1/8 maps to the panoptic map", ("1/8 maps to the panoptic map",), merging.CPU_TARGET),
        Row("... to the panoptic map and instances", ("1/8 maps to map and instances",), merging.CPU_TARGET),
    )),
    Table("panoptic_quality", CPU, "ratio", (
        Row("PQ evaluator per image, over Detectron2's COCOPanopticEvaluator, one core",
            ("psf's PanopticQualityEvaluator",), panoptic_quality.TARGET_RATIO),
    )),
    Table("evaluation", CPU, "ratio", (
        Row("evaluation beside a model that sleeps 50 ms, one worker: time per image over loader and model alone",
            ("1",), evaluation.TARGET_RATIO),
        Row("... CPU time of all threads per image, ms", ("1",), column="CPU: all threads, evaluated, ms"),
    )),
    Table("loader", CPU, "ratio", (
        Row("ground truth in the loader, over masks made in the loader", ("psf: label map and boxes",),
            loader.TARGET_RATIO),
    )),
    Table("start", CPU, "value", (
        Row("`psf --help`, s", ("psf --help",), start.HELP_TARGET),
        Row("`psf predict` of one image, over imports, model and this image",
            ("psf predict over imports, model and one image",), start.PREDICT_TARGET),
        Row("`psf train` to the end of its first iteration, s", ("psf train to the end of its first iteration",),
            start.TRAIN_TARGET),
    )),
    Table("serving", CPU, "", (
        Row("psf serve, 640 x 480, tiny model, 4 clients: time per request, over the predictor alone", ("4 clients",),
            serving.OVERHEAD_TARGET, "/ alone"),
        Row("... requests per second", ("4 clients",), column="requests/s", digits=1),
        Row("... 16 clients: latency, 99th percentile, ms", ("16 clients",), column="p99 ms", digits=0),
        Row("... other thresholds: latency, median, ms", (serving.OTHER_THRESHOLDS,), column="p50 ms", digits=0),
        Row("... memory after 2,000 requests, over that after 100", (serving.MEMORY_LAST,), serving.MEMORY_TARGET, "MB",
            over=(serving.MEMORY_FIRST,)),
    )),
    Table("half_precision", CPU, "value", HALF_PRECISION),
    Table("training_memory", CPU, "kept GB", (
        Row("training step, R50, 512 x 768, all parts checkpointed, over none: bytes kept for backward",
            ("all", "batch 1", "float32"), over=("nothing", "batch 1", "float32")),
        Row("... time", ("all", "batch 1", "float32"), column="ms", over=("nothing", "batch 1", "float32")),
    )),
    Table("compiled", CPU, "/ eager", (
        Row("R50 without post-processing, torch.compile over eager", ("float32", "torch.compile"), optional=True),
    )),
    Table("ms_deform_attn", GPU, "ms", (
        Row("deformable attention, forward + backward, float32, over the official kernel",
            (*GPU_ATTENTION, "float32", OURS), 0.6, over=(*GPU_ATTENTION, "float32", OFFICIAL), optional=True),
        Row("... bfloat16 over the official kernel's float32",
            (*GPU_ATTENTION, "bfloat16", OURS), 0.4, over=(*GPU_ATTENTION, "float32", OFFICIAL), optional=True),
        Row("... bfloat16 over deformops' bfloat16", (*GPU_ATTENTION, "bfloat16", OURS), 1.05,
            over=(*GPU_ATTENTION, "bfloat16", ms_deform_attn.DEFORMOPS), optional=True),
        Row("... bfloat16 over grid_sample's bfloat16", (*GPU_ATTENTION, "bfloat16", OURS), column="/ reference"),
    )),
    Table("whole_model", GPU, "psf / baseline", (
        Row("R50 at test, 800 x 1216, bfloat16, over official kernel and plain mask decoder",
            ("bfloat16", "official op and plain decoder"), whole_model.OFFICIAL_TARGET, optional=True),
        Row("... over grid_sample and plain mask decoder", ("bfloat16", PLAIN)),
    )),
    Table("training_step", GPU, "psf / baseline", (
        Row("training step, R50, 512 x 768, float32, over grid_sample and plain mask decoder", ("float32", PLAIN),
            training_step.TARGET_RATIO),
        Row("... bfloat16", ("bfloat16", PLAIN)),
    )),
    Table("mask_decoder", GPU, "psf / plain", (
        Row("mask decoders at test, 800 x 1216, float32, over the plain decoder: time",
            ("test, both", "float32", "ms"), mask_decoder.TEST_TIME_TARGET),
        Row("... at test: memory", ("test, both", "float32", "peak, MB"), mask_decoder.TEST_MEMORY_TARGET),
        Row("... in training, 512 x 768: time", ("training, both", "float32", "ms"), mask_decoder.TRAINING_TIME_TARGET),
        Row("... in training: memory", ("training, both", "float32", "peak, MB"), mask_decoder.TRAINING_MEMORY_TARGET),
    )),
    Table("merging", GPU, "psf / plain", (
        Row("from the 1/8 maps to the panoptic map, over the plain loop", ("1/8 maps to the panoptic map",),
            merging.GPU_TARGET),
        Row("... synchronizations with the host", ("1/8 maps to the panoptic map",), 1, "psf syncs", digits=0),
    )),
    Table("half_precision", GPU, "value", (
        *HALF_PRECISION,
        *(row._replace(text=row.text.replace(BF16, FP16), cells=(*row.cells[:1], FP16, *row.cells[2:]))
          for row in HALF_PRECISION),
    )),
    Table("training_memory", GPU, "peak GB", (
        Row("training step, R50, 800 x 1216, batch 2, bfloat16, nothing checkpointed: peak memory, GB",
            ("nothing", "batch 2", "bfloat16")),
        Row("... all parts checkpointed: peak memory, GB", ("all", "batch 2", "bfloat16")),
        Row("... all parts checkpointed, over none: time", ("all", "batch 2", "bfloat16"), column="ms",
            over=("nothing", "batch 2", "bfloat16")),
    )),
    Table("compiled", GPU, "/ eager", (
        Row("R50 without post-processing, bfloat16, CUDA graph over eager", ("bfloat16", "CUDA graph"), optional=True),
        Row("... torch.compile over eager", ("bfloat16", "torch.compile"), optional=True),
    )),
    Table("compiled_training", GPU, "/ eager", (
        Row("training step, R50, 512 x 768, torch.compile over eager", ("torch.compile",), optional=True),
    )),
)  # fmt: skip


class Section(NamedTuple):
    """One run of a script."""

    when: str  # UTC, "2026-11-22 14:29": the order of texts is the order of times
    commit: str
    machine: str
    conditions: str  # what the script states before its table
    headers: list[str]
    table: list[dict[str, str]]

    @property
    def device(self) -> str:
        """GPU if the machine's line continues after torch's version (report.py)."""
        return GPU if re.search(r"torch [^ ,]+, ", self.machine) else CPU


def main() -> None:
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8"), RESULTS), encoding="utf-8")
    print(f"wrote {PAGE}")


def updated(page: str, results: Path) -> str:
    """The text of the page with the table from this folder of results."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{PAGE} has no lines {BEGIN.strip()!r} and {END.strip()!r}")
    return f"{before}{BEGIN}\n{summary(results)}\n{END}{after}"


def summary(results: Path) -> str:
    """The table of all rows, and a list of the runs that they come from."""
    rows, runs = [], []
    for table in TABLES:
        section = newest(results, table.name, table.device)
        for row in table.rows:
            target = "" if row.target is None else f"{row.target:g}"
            rows.append([f"{table.device}: {row.text}", target, shown(row, table, section), f"`{table.name}`"])
        if section is not None:
            run = f"{section.when} UTC, commit {section.commit}; {section.machine}; {section.conditions}"
            runs.append(f"* `{table.name}`, {table.device}: {run}")
    text = tabulate(rows, ["measurement", "target", "measured", "results"], tablefmt="pipe", disable_numparse=True)
    return "\n".join([text, "", "The runs:", "", *runs, ""])


def newest(results: Path, name: str, device: str) -> Section | None:
    files = sorted(results.glob(f"[0-9]*-[0-9][0-9]_{name}.md"))
    sections = [one for file in files for one in read_sections(file) if one.device == device]
    return max(reversed(sections), key=lambda section: section.when, default=None)


def read_sections(file: Path) -> Iterator[Section]:
    """Sections as report.py writes them; notes, which have a title after the commit, are not among them."""
    parts = re.split(r"^## (.*)\n", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        found = re.fullmatch(r"(\d{4}-\d\d-\d\d \d\d:\d\d) UTC, commit (\S+)", title)
        if not found:
            continue
        lines = [line for line in body.splitlines() if line.strip()]
        texts = [line for line in lines if not line.startswith("|")]
        headers, _, *rows = [
            [RENAMED.get(cell.strip(), cell.strip()) for cell in line.strip("|").split("|")]
            for line in lines
            if line.startswith("|")
        ]
        table = [dict(zip(headers, row, strict=True)) for row in rows]
        yield Section(found[1], found[2], texts[0], "; ".join(texts[1:]), headers, table)


def shown(row: Row, table: Table, section: Section | None) -> str:
    """The number of a row; bold if it misses the target."""
    if section is None:
        return NOT_MEASURED
    place = f"{table.name} on a {table.device}, {section.when}"
    column = row.column or table.column
    numbers = [number(section, cells, column, place, row.optional) for cells in (row.cells, row.over) if cells]
    if None in numbers:
        return NOT_MEASURED
    value, *over = (x for x in numbers if x is not None)
    value = value / over[0] if over else value
    text = f"{value:.{row.digits}f}"
    return text if row.target is None or value <= row.target else f"**{text}**"


def number(section: Section, cells: Sequence[str], column: str, place: str, optional: bool) -> float | None:
    """A number of the table, where exactly one row has all these cells; None without a number, where a run failed."""
    if column not in section.headers:
        sys.exit(f'{place}: expected a column "{column}", found {section.headers}')
    rows = [row for row in section.table if set(cells) <= set(row.values())]
    if optional and not rows:
        return None
    if len(rows) != 1:
        sys.exit(f"{place}: expected one row with {list(cells)}, found {len(rows)}")
    try:
        return float(rows[0][column])
    except ValueError:
        return None


if __name__ == "__main__":
    main()
