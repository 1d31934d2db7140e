"""Which files the validator may replace: its own of earlier runs, which begin as the new ones will."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["BEGINNING_OF_REPORT", "check_corrected_target", "check_report_target", "corrected_text"]

BEGINNING_OF_REPORT = '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta name="generator" content="psf">'
_SOURCE = "psf_corrected_from"  # the first key of a corrected JSON: the name of the file that it was made of


def check_report_target(target: Path) -> None:
    """Raise a ValueError if there is something that is no report of ours."""
    if _is_foreign(target, BEGINNING_OF_REPORT):
        raise ValueError(f"--html {target} exists and is no report of psf: it is not overwritten; name another file")


def check_corrected_target(target: Path, json_file: str) -> None:
    """Raise a ValueError if there is something that is no earlier correction of this JSON, or the JSON itself."""
    if target.exists() and Path(json_file).exists() and target.samefile(json_file):
        raise ValueError(f"--fix {target} is the JSON that was read; name another file, the source stays as it is")
    if _is_foreign(target, _beginning_of_corrected(json_file)):
        name = Path(json_file).name
        raise ValueError(
            f"--fix {target} exists and is not what an earlier --fix made of {name}: it is not overwritten; name "
            "another file"
        )


def corrected_text(content: Mapping[str, Any], json_file: str) -> str:
    """What a corrected JSON holds, of which `check_corrected_target` knows whose it is."""
    others = {key: value for key, value in content.items() if key != _SOURCE}
    return f"{_beginning_of_corrected(json_file)}, {json.dumps(others)[1:]}"


def _beginning_of_corrected(json_file: str) -> str:
    return json.dumps({_SOURCE: Path(json_file).name})[:-1]


def _is_foreign(target: Path, beginning: str) -> bool:
    """Whether something is there that begins otherwise; what is no plain file (a folder, a device) is not read."""
    if not target.exists():
        return False
    if not target.is_file():
        return True
    expected = beginning.encode()
    with target.open("rb") as file:
        return file.read(len(expected)) != expected
