"""Results per class, as a CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.data import Metadata, MetadataCatalog

from psf.data import distinct_names
from psf.data.own_files import free_name, own_path
from psf.evaluation.panoptic_evaluator import PanopticQualityEvaluator

__all__ = ["PER_CLASS_COLUMNS", "write_per_class"]

PER_CLASS_COLUMNS = (
    *("class", "category_id", "kind"),
    *("PQ", "SQ", "RQ", "TP", "FP", "FN", "boundary_PQ"),
    *("mask_AP", "box_AP", "IoU"),
)


class _Class(NamedTuple):
    name: str
    category_id: int  # the dataset's own
    is_thing: bool


def write_per_class(
    path: Path, dataset_name: str, results: Mapping[str, Any], panoptic: PanopticQualityEvaluator | None
) -> None:
    """Write one line per class, in the order of the contiguous ids; a missing metric is empty.

    Args:
        path: the CSV file; its folder is created. `free_name` if psf has not written an existing one.
        dataset_name: its metadata contains the class names.
        results: of Detectron2's evaluators, in percent: "segm", "bbox" and "sem_seg" have a metric per class name.
        panoptic: a panoptic evaluator after `evaluate`.
    """
    classes = _classes(MetadataCatalog.get(dataset_name))
    with own_path(free_name(path)) as draft, draft.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, PER_CLASS_COLUMNS, restval="")
        writer.writeheader()
        for name, category_id, is_thing in classes:
            row: dict[str, Any] = {
                "class": name,
                "category_id": category_id,
                "kind": "thing" if is_thing else "stuff",
                "IoU": _metric(results, "sem_seg", "IoU", name),
            }
            if is_thing:
                is_alone = sum(other.is_thing for other in classes) == 1  # Detectron2 then reports only the mean
                for column, task in (("mask_AP", "segm"), ("box_AP", "bbox")):
                    row[column] = _metric(results, task, "AP", None if is_alone else name)
            if panoptic is not None:
                row |= _panoptic_metrics(panoptic, category_id)
            writer.writerow(row)


def _classes(metadata: Metadata) -> list[_Class]:
    classes: dict[tuple[int, bool], _Class] = {}
    things = metadata.get("thing_dataset_id_to_contiguous_id") or {}
    stuff = metadata.get("stuff_dataset_id_to_contiguous_id") or {}
    for ids, is_thing in ((things, True), (stuff, False)):
        names = distinct_names(metadata.get("thing_classes" if is_thing else "stuff_classes") or [])
        for category_id, contiguous in ids.items():
            if is_thing or category_id not in things:  # semantic metadata also lists things as stuff
                classes[contiguous, not is_thing] = _Class(names[contiguous], category_id, is_thing)
    return [classes[key] for key in sorted(classes)]


def _panoptic_metrics(panoptic: PanopticQualityEvaluator, category_id: int) -> dict[str, Any]:
    quality = panoptic.per_class.get(category_id)
    if quality is None or not quality.occurs:
        return {}
    metrics: dict[str, Any] = {name.upper(): _text(100 * getattr(quality, name)) for name in ("pq", "sq", "rq")}
    metrics |= {"TP": quality.tp, "FP": quality.fp, "FN": quality.fn}
    boundary = panoptic.boundary_per_class.get(category_id)
    if boundary is not None and boundary.occurs:
        metrics["boundary_PQ"] = _text(100 * boundary.pq)
    return metrics


def _metric(results: Mapping[str, Any], task: str, metric: str, name: str | None) -> str:
    return _text(results.get(task, {}).get(metric if name is None else f"{metric}-{name}", math.nan))


def _text(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else ""
