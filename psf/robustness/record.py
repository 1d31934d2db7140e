"""The figures measured so far, in a file that a later run goes on with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["CLEAN", "RobustnessRecord"]

CLEAN = "clean"
MOST_NAMED = 5


class RobustnessRecord:
    """Results of a clean evaluation and of corruptions at severities.

    Args:
        path: of the JSON; what it holds is taken up.
        about: plain values that say what is measured, such as `describe_measurement` gives.

    Raises:
        ValueError: if the file is of another measurement, naming what differs, or no such JSON.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path, self.about = path, json.loads(json.dumps(dict(about)))  # as it will be read again
        self._results: dict[str, dict[str, float]] = {}
        if path.is_file():
            self._results = self._read()

    def get(self, corruption: str = CLEAN, severity: int | None = None) -> dict[str, float] | None:
        """The results of one evaluation; None if there are none yet."""
        return self._results.get(_key(corruption, severity))

    def add(self, results: Mapping[str, float], corruption: str = CLEAN, severity: int | None = None) -> None:
        """Keep the results of one evaluation, and write the file anew, in one go."""
        self._results[_key(corruption, severity)] = {name: float(value) for name, value in results.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps({"about": self.about, "results": self._results}, indent=2), encoding="utf-8")
        partial.replace(self.path)

    def figures(self, corruption: str, severities: Sequence[int], metric: str = "PQ") -> list[float | None]:
        """One figure per severity; None where there is none yet."""
        return [(self.get(corruption, severity) or {}).get(metric) for severity in severities]

    def clean_figure(self, metric: str = "PQ") -> float | None:
        """Of the images as they are."""
        return (self.get() or {}).get(metric)

    def _read(self) -> dict[str, dict[str, float]]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            about = dict(content["about"])
            results = {key: dict(figures) for key, figures in content["results"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.path} is no record of a robustness evaluation; remove it to begin anew") from error
        different = [
            f"{key} {about.get(key)!r} (this run has {self.about.get(key)!r})"
            for key in {**self.about, **about}
            if about.get(key) != self.about.get(key)
        ]
        if different:
            others = f" and {len(different) - MOST_NAMED} others" if len(different) > MOST_NAMED else ""
            raise ValueError(
                f"{self.path} was measured with {', '.join(different[:MOST_NAMED])}{others}; give another OUTPUT_DIR, "
                "or remove the file to begin anew"
            )
        return results


def _key(corruption: str, severity: int | None) -> str:
    return corruption if severity is None else f"{corruption}-{severity}"
