"""Choose the implementation of deformable attention, with a reason."""

from __future__ import annotations

import importlib.util
import logging
import os
from typing import NamedTuple

import torch

from psf.errors import UserError

__all__ = ["IMPLEMENTATIONS", "Choice", "Work", "choose", "describe_implementation", "log_once"]

IMPLEMENTATIONS = ("reference", "bag", "triton")

# Below this many points per image the bag's fixed cost outweighs its speed. Measured on one thread of an AMD EPYC
# (Zen 4) with torch 2.15: forward 2.6 x the reference's time at 5440 points, 0.6 x at 25600 and 0.1 x at 650000; with
# backward 1.2 x at 25600, between 0.4 x (small maps) and 1.2 x (large maps) at 38400, 0.6 x at 68000, 0.2 x at 650000.
_BAG_PAYS_FORWARD = 16_000
_BAG_PAYS_TRAINING = 32_000


class Work(NamedTuple):
    """Properties of a call that the choice depends on."""

    device: str  # type of the device: "cpu", "cuda", ...
    points: int  # sampled points per image: queries * heads * levels * points
    has_gradient: bool
    is_deterministic: bool


class Choice(NamedTuple):
    """An implementation and the reason for it, as a phrase."""

    name: str
    reason: str


def choose(work: Work, asked: str | None = None) -> Choice:
    """The implementation named by the argument or the environment variable PSF_MSDA, else the fastest one.

    Raises:
        UserError: if the named implementation is unknown or does not support this work.
    """
    variable = os.environ.get("PSF_MSDA") or None
    for name, source in ((asked, "the argument implementation"), (variable, "the environment variable PSF_MSDA")):
        if name is not None:
            _check(name, source, work)
            return Choice(name, f"set by {source}")
    if work.device == "cuda":
        if work.is_deterministic and work.has_gradient:
            return Choice("bag", "the only one on a GPU whose gradients are deterministic")
        # No result in benchmarks/results shows yet that triton is correct and faster on a GPU.
        return Choice("reference", "no GPU benchmark shows a faster one yet (PSF_MSDA=triton tries Triton)")
    if work.device == "cpu":
        least = _BAG_PAYS_TRAINING if work.has_gradient else _BAG_PAYS_FORWARD
        if work.points >= least:
            return Choice("bag", f"the fastest on a CPU from {least} points per image")
        return Choice("reference", f"the fastest on a CPU below {least} points per image")
    return Choice("reference", f"the only one known to run on {work.device}")


def _check(name: str, source: str, work: Work) -> None:
    if name not in IMPLEMENTATIONS:
        raise UserError(f"{source} is {name!r}; known implementations: {', '.join(IMPLEMENTATIONS)}")
    if name == "bag" and work.device not in ("cpu", "cuda"):
        raise UserError(f"{source} is 'bag', which runs on cpu and cuda, but the tensors are on {work.device}")
    if name == "reference" and work.device == "cuda" and work.is_deterministic and work.has_gradient:
        raise UserError(f"{source} is 'reference', whose gradients are not deterministic on a GPU; use 'bag'")
    if name == "triton":
        if importlib.util.find_spec("triton") is None:
            raise UserError(f"{source} is 'triton', but the package triton is not installed: pip install triton")
        if work.device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            raise UserError(f"{source} is 'triton', which runs on cuda, but the tensors are on {work.device}")


_logged = False


def log_once(choice: Choice) -> None:
    """Log the first implementation that this process uses."""
    global _logged
    if not _logged:
        _logged = True
        logging.getLogger(__name__).info("deformable attention: %s (%s)", choice.name, choice.reason)


def describe_implementation(device: str | None = None) -> str:
    """Which implementation of deformable attention runs on a large image, and why.

    Args:
        device: type of the device; None: the GPU if this machine has one (`psf doctor`).
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        choice = choose(Work(device, points=10**6, has_gradient=False, is_deterministic=False))
    except UserError as error:
        return str(error)
    return f"{choice.name} on {device}: {choice.reason}"
