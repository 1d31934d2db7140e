"""Write a robustness record as a table and as a chart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tabulate import tabulate

from psf.data.own_files import free_name, own_path, write_own_text
from psf.tools.robustness.corruptions import CORRUPTIONS, SEVERITIES
from psf.tools.robustness.record import RobustnessRecord

__all__ = ["draw_chart", "mean_figures", "robustness_table", "write_report"]

COLORS = {"blur": "#4c78a8", "noise": "#e45756", "digital": "#54a24b", "weather": "#b279a2"}


def mean_figures(record: RobustnessRecord, severities: Sequence[int], metric: str = "PQ") -> dict[str, float]:
    """Mean over the severities of each corruption, if all are measured, in the order of `CORRUPTIONS`."""
    means = {}
    for name in CORRUPTIONS:
        figures = [figure for figure in record.figures(name, severities, metric) if figure is not None]
        if len(figures) == len(severities):
            means[name] = fmean(figures)
    return means


def robustness_table(record: RobustnessRecord, severities: Sequence[int], metric: str = "PQ") -> str:
    """Markdown: one line per corruption with each severity and the mean, then the mean of all, then clean images.

    As in the paper's table 11, the mean of all is the mean of the corruptions' means.
    """
    means = mean_figures(record, severities, metric)
    clean = record.clean_figure(metric)
    rows = []
    for name in means:
        figures = record.figures(name, severities, metric)
        rows.append(
            [name.replace("_", " "), CORRUPTIONS[name].group, *figures, means[name], _share(means[name], clean)]
        )
    blank = [None] * len(severities)
    if means:
        mean = fmean(means.values())
        rows.append([f"mean of {len(means)}", "", *blank, mean, _share(mean, clean)])
    rows.append(["clean", "", *blank, clean, None])
    headers = [f"{metric}, %", "kind", *map(str, severities), "mean", "of clean, %"]
    return tabulate(rows, headers, tablefmt="pipe", floatfmt=".2f")


def draw_chart(record: RobustnessRecord, severities: Sequence[int], path: Path, metric: str = "PQ") -> None:
    """Draw a bar per corruption with its severities from left to right, and lines for clean images and the mean."""
    means = mean_figures(record, severities, metric)
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for group, color in COLORS.items():
        places = [position for position, name in enumerate(means) if CORRUPTIONS[name].group == group]
        if places:
            axes.bar(places, [list(means.values())[place] for place in places], color=color, label=group, zorder=2)
    for position, name in enumerate(means):
        _draw_severities(axes, position, severities, record.figures(name, severities, metric))
    clean = record.clean_figure(metric)
    if clean is not None:
        axes.axhline(clean, color="black", linewidth=1, label=f"clean {clean:.1f}")
    if means:
        mean = fmean(means.values())
        axes.axhline(mean, color="black", linewidth=1, linestyle="--", label=f"mean {mean:.1f}")
    axes.set_xticks(range(len(means)), [name.replace("_", " ") for name in means], rotation=45, ha="right")
    axes.set_ylabel(f"{metric}, %")
    axes.set_ylim(bottom=0)
    axes.set_title("Bars: mean over the severities " + ", ".join(map(str, severities)) + "; numbers: severities")
    axes.grid(axis="y", alpha=0.3, zorder=0)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside right upper")
    with own_path(free_name(path)) as draft:
        figure.savefig(draft, dpi=120)


def write_report(record: RobustnessRecord, severities: Sequence[int], folder: Path, metric: str = "PQ") -> str:
    """Write robustness.md and robustness.png. Returns the table."""
    table = robustness_table(record, severities, metric)
    draw_chart(record, severities, folder / "robustness.png", metric)
    write_own_text(free_name(folder / "robustness.md"), table + "\n")
    return table


def _draw_severities(axes: Axes, place: int, severities: Sequence[int], figures: Sequence[float | None]) -> None:
    """Mark each severity with its number, from left to right within the bar, joined by a line."""
    width = 0.8 * (len(severities) - 1) / len(SEVERITIES)
    places = np.linspace(place - width / 2, place + width / 2, len(severities))
    heights = [math.nan if one is None else one for one in figures]
    axes.plot(places, heights, color="black", linewidth=0.6, zorder=3)
    for severity, x, y in zip(severities, places, heights, strict=True):
        axes.plot(x, y, "o", markersize=7, markerfacecolor="white", markeredgecolor="black", zorder=4)
        axes.text(x, y, str(severity), fontsize=6, ha="center", va="center_baseline", zorder=5)


def _share(figure: float, clean: float | None) -> float | None:
    return 100 * figure / clean if clean else None
