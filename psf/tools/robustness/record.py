"""Results of a robustness evaluation, in a file that a later run continues."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from psf.data.files import sha256_of, write_text
from psf.errors import UserError

__all__ = [
    "CLEAN",
    "RobustnessRecord",
    "describe_measurement",
]

# Recorded separately (the classes by the hash of the panoptic JSON), or without effect on the results.
LEFT_OUT = {"MODEL.WEIGHTS", "MODEL.DEVICE", "MODEL.PSF.CLASSES"}
CLEAN = "clean"
MOST_NAMED = 5


def describe_measurement(cfg: CfgNode, dataset_name: str, num_images: int | None) -> dict[str, Any]:
    """Describe a measurement in plain values: names and hashes of weights and ground truth, and all of MODEL and INPUT.

    Args:
        cfg: of the model.
        dataset_name: a registered dataset with existing files.
        num_images: as in `evaluate_robustness`.
    """
    settings = {**_values(cfg.MODEL, "MODEL."), **_values(cfg.INPUT, "INPUT.")}
    return {
        "weights": cfg.MODEL.WEIGHTS,
        "weights_sha256": _digest(cfg.MODEL.WEIGHTS),
        "dataset": dataset_name,
        "panoptic_json_sha256": _digest(MetadataCatalog.get(dataset_name).get("panoptic_json") or ""),
        "num_images": num_images,
        **{key: value for key, value in settings.items() if key not in LEFT_OUT},
    }


def _values(node: CfgNode, prefix: str) -> dict[str, Any]:
    def pairs(inner: CfgNode, name: str) -> Iterator[tuple[str, Any]]:
        for key, value in inner.items():
            if isinstance(value, CfgNode):
                yield from pairs(value, f"{name}{key}.")
            else:
                yield name + key, value

    return dict(pairs(node, prefix))


def _digest(path: str) -> str | None:
    """SHA-256 of a local file; None for anything else, such as a URL."""
    file = urlparse(path)._replace(query="").geturl()  # as the checkpointer parses MODEL.WEIGHTS
    return sha256_of(file) if os.path.isfile(file) else None


class RobustnessRecord:
    """The results on clean images and for each corruption and severity.

    Args:
        path: of the JSON; existing results are read.
        about: a description of the measurement in plain values, from `describe_measurement`.

    Raises:
        UserError: if the file is not such a JSON, or has another measurement; the message names the differences.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path, self.about = path, json.loads(json.dumps(dict(about)))  # as it is after reading
        self._results: dict[str, dict[str, float]] = {}
        if path.is_file():
            self._results = self._read()

    def get(self, corruption: str = CLEAN, severity: int | None = None) -> dict[str, float] | None:
        """The results of one evaluation; None if there are none yet."""
        return self._results.get(_key(corruption, severity))

    def add(self, results: Mapping[str, float], corruption: str = CLEAN, severity: int | None = None) -> None:
        """Keep the results of one evaluation, and rewrite the file."""
        self._results[_key(corruption, severity)] = {name: float(value) for name, value in results.items()}
        content = json.dumps({"about": self.about, "results": self._results}, indent=2)
        write_text(self.path, content, durable=True)  # an evaluation takes minutes to hours

    def figures(self, corruption: str, severities: Sequence[int], metric: str = "PQ") -> list[float | None]:
        """One value of the metric per severity; None if not measured yet."""
        return [(self.get(corruption, severity) or {}).get(metric) for severity in severities]

    def clean_figure(self, metric: str = "PQ") -> float | None:
        """The value of the metric on clean images; None if not measured yet."""
        return (self.get() or {}).get(metric)

    def _read(self) -> dict[str, dict[str, float]]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            about = dict(content["about"])
            results = {key: dict(figures) for key, figures in content["results"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.path} is not a record of a robustness evaluation; remove it to start again"
            ) from error
        different = [
            f"{key} {about.get(key)!r} (this run has {self.about.get(key)!r})"
            for key in {**self.about, **about}
            if about.get(key) != self.about.get(key)
        ]
        if different:
            others = f" and {len(different) - MOST_NAMED} others" if len(different) > MOST_NAMED else ""
            raise UserError(
                f"{self.path} was measured with {', '.join(different[:MOST_NAMED])}{others}; use another OUTPUT_DIR, "
                "or remove the file to start again"
            )
        return results


def _key(corruption: str, severity: int | None) -> str:
    return corruption if severity is None else f"{corruption}-{severity}"
