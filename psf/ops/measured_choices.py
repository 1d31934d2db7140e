"""The cache file of measurements: milliseconds of each implementation of deformable attention, by environment.

A damaged file, or one of another format, counts as empty, with one warning, and is written anew. A cache folder that
cannot be written is no error. Processes that write at the same time replace the whole file; at worst, the next process
measures again what one of them has found.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from psf.atomic_files import cache_root, write_text
from psf.errors import UserError

__all__ = ["cache_file", "describe_environment", "read_times", "store_times"]

logger = logging.getLogger(__name__)

Times = dict[str, dict[str, float]]  # problem -> implementation -> milliseconds

_FORMAT = 1
_LARGEST = 2**20  # bytes; a file of a thousand measurements is smaller


def cache_file() -> Path | None:
    """The file, in psf's cache folder; None if there is no such folder, because the user has no home."""
    try:
        return cache_root() / "deformable_attention.json"
    except UserError:
        return None


@functools.lru_cache(maxsize=64)
def describe_environment(device: torch.device) -> str:
    """All that a measurement depends on besides the problem: GPU, driver, and the versions of the code."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    package = importlib.import_module("psf")
    return (
        f"{name}, driver {_driver_version()}, torch {torch.__version__}, triton {_triton_version()}, "
        f"psf {package.__version__} ({_checksum_of_code()})"
    )


def _driver_version() -> str:
    """NVIDIA's driver, as its kernel module describes itself; "unknown" elsewhere."""
    try:
        return " ".join(Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0].split())
    except (OSError, UnicodeDecodeError, IndexError):
        return "unknown"


def _triton_version() -> str:
    try:
        return str(importlib.import_module("triton").__version__)
    except Exception:  # missing or broken: then it is not among the implementations, or it fails
        return "none"


def _checksum_of_code() -> str:
    """Of the files of psf.ops: a kernel that is edited under the same version of psf is checked again."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def read_times(environment: str) -> Times:
    """The measurements of an environment; {} if there are none, or no readable file."""
    return _read(cache_file()).get(environment, {})


def store_times(environment: str, problem: str, milliseconds: Mapping[str, float]) -> None:
    """Add a measurement to the file, atomically; no effect if it cannot be written."""
    file = cache_file()
    if file is None:
        return
    content = _read(file)
    content.setdefault(environment, {})[problem] = {name: round(time, 4) for name, time in milliseconds.items()}
    try:
        write_text(file, json.dumps({"format": _FORMAT, "milliseconds": content}, indent=1) + "\n")
    except OSError as error:
        logger.debug("%s cannot be written (%s): the next process measures again", file, error)


def _read(file: Path | None) -> dict[str, Times]:
    if file is None:
        return {}
    try:
        if file.stat().st_size > _LARGEST:
            raise ValueError(f"larger than {_LARGEST} bytes")
        return _checked(json.loads(file.read_text(encoding="utf-8")))
    except OSError as error:  # there is none yet, or the folder belongs to another user
        logger.debug("%s cannot be read (%s)", file, error)
    except (ValueError, RecursionError, OverflowError) as error:  # ValueError: also of the decoders of UTF-8 and JSON
        _warn_once(f"{file} is no cache of measurements ({error}): it is ignored and written anew")
    return {}


def _checked(content: Any) -> dict[str, Times]:
    """The measurements of a file; a ValueError if anything in it is not as `store_times` writes it."""
    if not isinstance(content, dict) or content.get("format") != _FORMAT or set(content) != {"format", "milliseconds"}:
        raise ValueError(f"expected an object of format {_FORMAT}")
    found = content["milliseconds"]
    for node in (found, *_values(found), *(times for problems in _values(found) for times in _values(problems))):
        if not isinstance(node, dict):
            raise ValueError("expected environments, problems and times as objects")
    for time in (time for problems in _values(found) for times in _values(problems) for time in _values(times)):
        if not isinstance(time, (int, float)) or isinstance(time, bool) or not (math.isfinite(time) and time > 0):
            raise ValueError(f"expected a time in milliseconds, found {str(time)[:50]!r}")
    checked: dict[str, Times] = found
    return checked


def _values(node: Any) -> list[Any]:
    return list(node.values()) if isinstance(node, dict) else []


@functools.lru_cache(maxsize=64)
def _warn_once(text: str) -> None:
    logger.warning(text)
