"""Choose the implementation of deformable attention: named by the user, known by a rule, or measured on this GPU.

On a GPU, the first call of each class (`Problem`) measures, and the process keeps the choice: it never changes between
the forward pass and its recomputation. The processes of a training may choose differently where two implementations
are about as fast; this is harmless, because all of them were checked, and gradients are averaged.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
from typing import NamedTuple

import torch
from torch import Tensor

from psf.errors import UserError
from psf.ops.measured_choices import cache_file, describe_environment, read_times, store_times
from psf.ops.measurement import Problem, measure, measured_size

__all__ = [
    "AUTO",
    "IMPLEMENTATIONS",
    "Choice",
    "Work",
    "check_implementation",
    "choose",
    "describe_implementation",
    "log_once",
    "used_implementations",
]

logger = logging.getLogger(__name__)

IMPLEMENTATIONS = ("reference", "bag", "triton")
AUTO = "auto"
MEASURED = ("cuda",)  # types of devices on which measurements decide

# On a CPU no measurement decides, so that results do not depend on the load of the machine. Below this many points per
# image the bag's fixed cost outweighs its speed. Measured on one thread of an AMD EPYC (Zen 4) with torch 2.15: forward
# 2.6 x the reference's time at 5440 points, 0.6 x at 25600 and 0.1 x at 650000; with backward 1.2 x at 25600, between
# 0.4 x (small maps) and 1.2 x (large maps) at 38400, 0.6 x at 68000, 0.2 x at 650000.
_BAG_PAYS_FORWARD = 16_000
_BAG_PAYS_TRAINING = 32_000


class Work(NamedTuple):
    """Properties of a call that the choice depends on."""

    device: torch.device
    dtype: torch.dtype  # of the value
    weights_dtype: torch.dtype
    batch: int
    queries: int  # per image
    tokens: int  # per image, of all levels
    heads: int
    dim: int  # channels of a head
    levels: int
    points: int  # per level
    has_gradient: bool
    is_deterministic: bool
    can_measure: bool  # False under torch.compile, in the capture of a CUDA graph, and for tensors without data

    @classmethod
    def of(cls, value: Tensor, locations: Tensor, weights: Tensor, *, is_deterministic: bool) -> Work:
        """The work of a call with these tensors, whose shapes are those of `ms_deform_attn`."""
        batch, queries, heads, levels, points = weights.shape
        return cls(
            device=value.device,
            dtype=value.dtype,
            weights_dtype=weights.dtype,
            batch=batch,
            queries=queries,
            tokens=value.shape[1],
            heads=heads,
            dim=value.shape[3],
            levels=levels,
            points=points,
            has_gradient=torch.is_grad_enabled() and any(x.requires_grad for x in (value, locations, weights)),
            is_deterministic=is_deterministic,
            can_measure=_can_measure(value),
        )


def _can_measure(value: Tensor) -> bool:
    """Whether this is a call with data, outside of torch.compile and of the capture of a CUDA graph."""
    if torch.compiler.is_compiling() or type(value) not in (Tensor, torch.nn.Parameter):  # others may have no data
        return False
    return not (value.is_cuda and torch.cuda.is_current_stream_capturing())


class Choice(NamedTuple):
    """An implementation and the reason for it, as a phrase."""

    name: str
    reason: str


def choose(work: Work, asked: str | None = None, configured: str = AUTO) -> Choice:
    """The implementation that the caller, the environment variable PSF_MSDA or the config names, else the fastest one.

    Args:
        work: the call.
        asked: the argument of the call; None: look further.
        configured: MODEL.PSF.MSDA.

    Raises:
        UserError: if the named implementation is unknown or does not support this work.
    """
    name, source = _named(asked, configured)
    _check(name, source, work.device.type, work.has_gradient and work.is_deterministic)
    if name != AUTO:
        return Choice(name, f"set by {source}")
    if work.device.type in MEASURED:
        if work.is_deterministic:
            if work.has_gradient:
                return Choice("bag", "the only one on a GPU whose gradients are deterministic")
            return Choice("reference", "in deterministic mode no measurement decides")
        return _measured_choice(work)
    if work.device.type == "cpu":
        least = _BAG_PAYS_TRAINING if work.has_gradient else _BAG_PAYS_FORWARD
        if work.queries * work.heads * work.levels * work.points >= least:
            return Choice("bag", f"the fastest on a CPU from {least} points per image")
        return Choice("reference", f"the fastest on a CPU below {least} points per image")
    return Choice("reference", f"the only one known to run on {work.device.type}")


def check_implementation(device: str, configured: str = AUTO) -> None:
    """Raise a UserError if PSF_MSDA, or else `configured` (MODEL.PSF.MSDA), cannot run on this type of device."""
    _check(*_named(None, configured), device)


def _named(asked: str | None, configured: str) -> tuple[str, str]:
    """The implementation that is named first, and by what."""
    if asked is not None:
        return asked, "the argument implementation"
    if variable := os.environ.get("PSF_MSDA"):
        return variable, "the environment variable PSF_MSDA"
    return configured, "the key MODEL.PSF.MSDA"


def _check(name: str, source: str, device: str, needs_deterministic_gradients: bool = False) -> None:
    if name not in (AUTO, *IMPLEMENTATIONS):
        raise UserError(f"{source} is {name!r}; known implementations: {', '.join((AUTO, *IMPLEMENTATIONS))}")
    if name == "bag" and device not in ("cpu", "cuda"):
        raise UserError(f"{source} is 'bag', which runs on cpu and cuda, but the device is {device}; use 'auto'")
    if name == "reference" and device == "cuda" and needs_deterministic_gradients:
        raise UserError(f"{source} is 'reference', whose gradients are not deterministic on a GPU; use 'bag'")
    if name == "triton":
        if importlib.util.find_spec("triton") is None:
            raise UserError(f"{source} is 'triton', but the package triton is not installed: pip install triton")
        if not _has_triton(device):
            raise UserError(f"{source} is 'triton', which runs on cuda, but the device is {device}; use 'auto'")


def _has_triton(device: str) -> bool:
    runs = device == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    return runs and importlib.util.find_spec("triton") is not None


_known: dict[tuple[torch.device, Problem], Choice] = {}  # of this process
_lock = threading.Lock()


def _measured_choice(work: Work) -> Choice:
    """What was measured for this class of calls, by this process or an earlier one; else measure it now."""
    types, sizes = (work.dtype, work.weights_dtype), (work.heads, work.dim, work.levels, work.points)
    if not work.can_measure:
        for known, name in _measured_before(work.device, types, work.has_gradient):
            if known == sizes:
                return Choice(name, "the fastest of what was measured before the graph was made")
        return Choice("reference", "nothing was measured before the graph was made")
    device = _with_index(work.device)
    queries, tokens = (measured_size(work.batch * number, *sizes) for number in (work.queries, work.tokens))
    problem = Problem(*types, *sizes, queries, tokens, work.has_gradient)
    choice = _known.get((device, problem))
    if choice is None:
        with _lock:  # of two threads, the second finds what the first has measured
            choice = _known.get((device, problem))
            if choice is None:
                choice = _known[device, problem] = _decide(problem, device)
    return choice


@torch.compiler.assume_constant_result
def _measured_before(
    device: torch.device, types: tuple[torch.dtype, torch.dtype], has_gradient: bool
) -> tuple[tuple[tuple[int, int, int, int], str], ...]:
    """Heads, channels, levels and points of what this process has measured, with the choice; the largest first.

    torch.compile calls this while it traces. The sizes are compared outside, because a graph may not know its own.
    """
    kind = (_with_index(device), types, has_gradient)
    found = [
        (problem, choice.name)
        for (place, problem), choice in list(_known.items())
        if (place, (problem.dtype, problem.weights_dtype), problem.has_gradient) == kind
    ]
    found.sort(key=lambda item: (-item[0].queries, -item[0].tokens))
    return tuple(((p.heads, p.dim, p.levels, p.points), name) for p, name in found)


def _with_index(device: torch.device) -> torch.device:
    if device == torch.device("cuda") and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _decide(problem: Problem, device: torch.device) -> Choice:
    """Read or measure the times of a problem; one warning about implementations that cannot be used."""
    names = [name for name in IMPLEMENTATIONS if name != "triton" or _has_triton(device.type)]
    environment = describe_environment(device)
    stored = read_times(environment).get(str(problem), {})
    if set(stored) == set(names):
        return _fastest(stored, problem, environment, f"measured earlier: {cache_file()}")
    found = measure(problem, device, names)
    if found.refused:  # another process tries again: the reason may be a missing compiler, or a lack of memory
        reasons = "; ".join(f"{name} {reason}" for name, reason in found.refused.items())
        logger.warning("deformable attention (%s): %s; %s runs instead", problem, reasons, found.fastest)
    else:
        store_times(environment, str(problem), found.milliseconds)
    return _fastest(found.milliseconds, problem, environment, "measured now")


def _fastest(milliseconds: dict[str, float], problem: Problem, environment: str, source: str) -> Choice:
    if not milliseconds:
        return Choice("reference", f"no measurement was possible for {problem}")
    times = ", ".join(f"{name} {time:.3g} ms" for name, time in sorted(milliseconds.items(), key=lambda item: item[1]))
    where = environment.partition(", driver ")[0]
    return Choice(min(milliseconds, key=lambda name: milliseconds[name]), f"{times}; {problem}; {where}; {source}")


_used: dict[Choice, None] = {}  # in the order of their first use


def log_once(choice: Choice) -> None:
    """Log each choice of this process at its first use."""
    if choice not in _used:
        _used[choice] = None
        logger.info("deformable attention: %s (%s)", choice.name, choice.reason)


def used_implementations() -> list[str]:
    """One line for each choice that this process has used so far, with its reason."""
    return [f"deformable attention: {choice.name} ({choice.reason})" for choice in list(_used)]


def describe_implementation(device: str | None = None, configured: str = AUTO) -> str:
    """Which implementation of deformable attention runs on a large image at test, and why; measures on a GPU.

    Args:
        device: type of the device; None: the GPU if this machine has one (`psf doctor`).
        configured: MODEL.PSF.MSDA.
    """
    has_gpu = torch.cuda.is_available()
    if device is None:
        device = "cuda" if has_gpu else "cpu"
    work = Work(
        device=torch.device(device),
        dtype=torch.float32,
        weights_dtype=torch.float32,
        batch=1,
        queries=19_950,  # the encoder of the paper's recipe at 800 x 1216, where each token is a query
        tokens=19_950,
        heads=8,
        dim=32,
        levels=3,
        points=4,
        has_gradient=False,
        is_deterministic=False,
        can_measure=has_gpu,
    )
    try:
        if device in MEASURED and not has_gpu and _named(None, configured)[0] == AUTO:
            return f"on {device}: the fastest, measured at the first call"
        choice = choose(work, configured=configured)
    except UserError as error:
        return str(error)
    return f"{choice.name} on {device}: {choice.reason}"
