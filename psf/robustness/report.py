"""A record as a table and as a chart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure
from tabulate import tabulate

from psf.robustness.corruptions import CORRUPTIONS
from psf.robustness.record import RobustnessRecord

__all__ = ["draw_chart", "mean_figures", "robustness_table"]

COLORS = {"blur": "#4c78a8", "noise": "#e45756", "digital": "#54a24b", "weather": "#b279a2"}


def mean_figures(record: RobustnessRecord, severities: Sequence[int], metric: str = "PQ") -> dict[str, float]:
    """Mean over the severities of each corruption of which all are measured, in the order of `CORRUPTIONS`."""
    means = {}
    for name in CORRUPTIONS:
        figures = [figure for figure in record.figures(name, severities, metric) if figure is not None]
        if len(figures) == len(severities):
            means[name] = fmean(figures)
    return means


def robustness_table(record: RobustnessRecord, severities: Sequence[int], metric: str = "PQ") -> str:
    """Markdown: a line per corruption with each severity and the mean; at the end the mean of all, and clean images.

    As in the paper's table 11 the mean of all is over the corruptions' means.
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
    """A picture: a bar per corruption, a dot per severity, and lines for clean images and the mean."""
    means = mean_figures(record, severities, metric)
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for group, color in COLORS.items():
        places = [position for position, name in enumerate(means) if CORRUPTIONS[name].group == group]
        if places:
            axes.bar(places, [list(means.values())[place] for place in places], color=color, label=group, zorder=2)
    for position, name in enumerate(means):
        figures = [math.nan if one is None else one for one in record.figures(name, severities, metric)]
        axes.scatter([position] * len(figures), figures, s=12, color="black", zorder=3)
    clean = record.clean_figure(metric)
    if clean is not None:
        axes.axhline(clean, color="black", linewidth=1, label=f"clean {clean:.1f}")
    if means:
        mean = fmean(means.values())
        axes.axhline(mean, color="black", linewidth=1, linestyle="--", label=f"mean {mean:.1f}")
    axes.set_xticks(range(len(means)), [name.replace("_", " ") for name in means], rotation=45, ha="right")
    axes.set_ylabel(f"{metric}, %")
    axes.set_ylim(bottom=0)
    axes.set_title("Bars: mean over severities; dots: severities " + ", ".join(map(str, severities)))
    axes.grid(axis="y", alpha=0.3, zorder=0)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside right upper")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _share(figure: float, clean: float | None) -> float | None:
    return 100 * figure / clean if clean else None
