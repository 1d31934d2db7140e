"""Start one process per GPU or several on the CPU, or join the processes of torchrun."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse

import torch
import torch.distributed as dist
from detectron2.engine import DEFAULT_TIMEOUT
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from psf.data.loaders import explain_dead_workers
from psf.engine.arguments import argument_parser, build_config
from psf.engine.hooks import ForwardedSignals, Stopped, stop_numbers
from psf.engine.train_step import is_of_lost_process, is_of_timeout
from psf.errors import UserError

__all__ = [
    "CpuProcesses",
    "choose_processes",
    "launch",
    "usable_cores",
]

# Each process holds a copy of the model and its activations: the limit protects the memory of machines with many cores.
MAX_PROCESSES = 8
MAX_MISTAKE = 1000  # characters of a message from a child process to its parent: less than a pipe takes at once
PATIENCE = 10.0  # seconds until a process reports what another one should have reported


class CpuProcesses(NamedTuple):
    """How a run uses the cores of one machine."""

    processes: int
    threads: int  # of each process
    cores: int  # that this run may use
    images_per_batch: int | None = None  # set if more processes cannot share it evenly

    def __str__(self) -> str:
        """One line for the log."""
        processes = f"{self.processes} process{'es' if self.processes > 1 else ''}"
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        cores = f"{self.cores} core{'s' if self.cores > 1 else ''}"
        line = f"{processes} of {threads}{' each' if self.processes > 1 else ''} on {cores}"
        if self.images_per_batch is not None:
            line += f" (SOLVER.IMS_PER_BATCH {self.images_per_batch} cannot be shared by more)"
        return line


def choose_processes(cores: int, images_per_batch: int, *, is_training: bool) -> CpuProcesses:
    """Choose the number of processes for the best use of the cores.

    Several processes with few threads are faster than one process with many: only part of an iteration runs on several
    threads, and threads that wait for each other are slow as soon as another program uses a core.

    Args:
        cores: usable cores of this machine.
        images_per_batch: SOLVER.IMS_PER_BATCH, the batch of all processes.
        is_training: whether every process needs an equal share of the batch; in evaluation it need not be equal.
    """
    most = min(cores, MAX_PROCESSES)
    processes = most
    if is_training:
        processes = max((n for n in range(1, most + 1) if images_per_batch % n == 0), default=1)
    return CpuProcesses(processes, max(cores // processes, 1), cores, images_per_batch if processes < most else None)


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: the scheduler's affinity and, in a container, its CPU quota; at least 1.

    Args:
        cgroup: folder of the control group. Both versions of control groups are read.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:  # macOS, Windows
        cores = os.cpu_count() or 1
    quota = _cgroup_quota(cgroup)
    return cores if quota is None else max(min(cores, int(quota)), 1)


def _cgroup_quota(folder: Path) -> float | None:
    """Cores that the quota allows, in CPU time per wall time; None: no quota."""
    try:
        if (folder / "cpu.max").is_file():  # version 2: "200000 100000" or "max 100000"
            limit, period = (folder / "cpu.max").read_text().split()
        else:  # version 1; -1 is no quota
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            limit, period = ((folder / "cpu" / name).read_text().strip() for name in names)
        quota = float("inf") if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no control groups, or an unknown version
        return None
    return quota if 0 < quota < float("inf") else None


Check = Callable[[argparse.Namespace, int], object]


def launch(
    main: Callable[[argparse.Namespace], object],
    args: argparse.Namespace,
    *,
    is_training: bool = True,
    check: Check | None = None,
) -> None:
    """Run `main(args)` in every process of this machine.

    Under torchrun this process is one of them. Otherwise Detectron2's launch starts `--num-gpus` processes, or
    `--num-processes` on the CPU if `--num-gpus` is 0. They communicate by NCCL on GPUs and by gloo on the CPU.
    `--num-processes auto` uses the cores of the machine, see `choose_processes`; for training this reads the config.
    On one machine the processes meet at a free port, so that several jobs run side by side.

    Args:
        main: a function that a new process can import. Its result is dropped. In a single process it runs here.
        args: of `psf.engine.argument_parser`. `num_processes` is set to the chosen number, and `process_choice` to a
            line for the log.
        is_training: False if `main` only evaluates; `--eval-only` has the same effect.
        check: called with args and the number of processes of the whole run before any process starts, such as
            `psf.engine.check_run`.

    Raises:
        UserError: if there are fewer GPUs than requested, if `--num-gpus` and `--num-processes` contradict, or if the
            port of `--dist-url` is taken; the UserErrors of `check` and `main`, also from other processes.
        Stopped: if a signal has ended the processes.
    """
    on_gpus = args.num_gpus > 0
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        with _one_report():
            _run_under_torchrun(main, args, on_gpus, check)
        return
    _check_gpus(args.num_gpus, f"--num-gpus {args.num_gpus}")
    if on_gpus and args.num_processes is not None and args.num_processes > 1:
        raise UserError(f"--num-processes {args.num_processes} is for the CPU, but --num-gpus is {args.num_gpus}")
    if not on_gpus and args.num_processes is None:
        _choose_number(args, is_training=is_training and not args.eval_only)
    num_processes = args.num_gpus if on_gpus else args.num_processes
    if check is not None:
        check(args, num_processes * args.num_machines)
    # Detectron2's default port depends only on the user: a second job at the same time could not start.
    if args.num_machines == 1 and args.dist_url == argument_parser().get_default("dist_url"):
        args.dist_url = "auto"
    with _environment(_quiet_environment() | ({} if on_gpus else _cpu_environment(num_processes))):
        _start(main, args, num_processes)


def _run_under_torchrun(
    main: Callable[[argparse.Namespace], object], args: argparse.Namespace, on_gpus: bool, check: Check | None
) -> None:
    num_local = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    _check_gpus(num_local if on_gpus else 0, f"torchrun with {num_local} processes on this machine")
    if check is not None:
        check(args, int(os.environ["WORLD_SIZE"]))
    _join_torchrun(num_local, on_gpus, _timeout(args))
    with _explained(args):
        main(args)
    dist.destroy_process_group()


@contextmanager
def _one_report() -> Iterator[None]:
    """Let the first process of a machine report a mistake that all of them find: torchrun then ends the others."""
    try:
        yield
    except UserError:
        if os.environ["LOCAL_RANK"] != "0":
            time.sleep(PATIENCE)
        raise


def _start(main: Callable[[argparse.Namespace], object], args: argparse.Namespace, num_processes: int) -> None:
    """Run `main(args)` in `num_processes` processes on this machine; in this process, if it is the only one."""
    start = partial(
        detectron2_launch,
        num_gpus_per_machine=num_processes,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        timeout=_timeout(args),
    )
    if num_processes * args.num_machines == 1:
        with _explained(args):
            start(main, args=(args,))
        return
    _check_port(args)
    ends, to_parent = Pipe(duplex=False)  # leaves no file behind, however this process ends
    with ForwardedSignals() as signals, _held_back(logging.getLogger("torch.multiprocessing.spawn")) as notes:
        try:
            start(_run_and_report, args=(to_parent, main, args))
        except (ProcessExitedException, ProcessRaisedException) as error:
            if not ends.poll() and signals.received is None:
                if isinstance(error, ProcessExitedException):
                    _explain_signal(error.error_index, -error.exit_code)
                notes.release()
                raise
        end: UserError | int | None = ends.recv() if ends.poll() else signals.received
        if isinstance(end, UserError):
            raise end
        if end is not None:
            raise Stopped(end)


def _explain_signal(rank: int, number: int) -> None:
    """Raise an error of one line if a process was ended by a signal that says why, without a word of its own."""
    if number in stop_numbers():
        raise Stopped(number)
    reasons: dict[int, str] = {
        signal.SIGKILL: "as the system does when memory runs out: use fewer processes, or lower SOLVER.IMS_PER_BATCH",
        signal.SIGABRT: "as NCCL does on GPUs if one process waits for another longer than --collective-timeout: "
        "the lines above name the cause",
    }
    if number in reasons:
        name = signal.Signals(number).name
        raise UserError(f"process {rank} was ended by {name}, {reasons[number]}; --resume continues a training")


class _HeldBack(logging.Filter):
    """Keeps the records of a logger."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__()
        self._logger, self._records = logger, list[logging.LogRecord]()

    def filter(self, record: logging.LogRecord) -> bool:
        self._records.append(record)
        return False

    def release(self) -> None:
        """Log them after all."""
        self._logger.removeFilter(self)
        for record in self._records:
            self._logger.handle(record)


@contextmanager
def _held_back(logger: logging.Logger) -> Iterator[_HeldBack]:
    """Hold back what torch says of processes that it ends: after a user's mistake in one of them, this is no news."""
    held_back = _HeldBack(logger)
    logger.addFilter(held_back)
    try:
        yield held_back
    finally:
        logger.removeFilter(held_back)


def _timeout(args: argparse.Namespace) -> timedelta:
    """`--collective-timeout`; Detectron2's own parser does not have it."""
    seconds = getattr(args, "collective_timeout", None)
    return DEFAULT_TIMEOUT if seconds is None else timedelta(seconds=seconds)


def _check_port(args: argparse.Namespace) -> None:
    """Raise a UserError if this machine should open the port of --dist-url, and another program has it."""
    address = urlparse(args.dist_url)
    if args.machine_rank or address.scheme != "tcp" or not address.port:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", address.port))
        except OSError as error:
            raise UserError(
                f"--dist-url {args.dist_url}: its port cannot be used ({error.strerror}); choose another one"
                + (", or leave out --dist-url" if args.num_machines == 1 else " on all machines")
            ) from error


def _choose_number(args: argparse.Namespace, *, is_training: bool) -> None:
    """Replace `--num-processes auto` by a number."""
    if args.num_machines > 1:
        raise UserError(
            f"--num-machines is {args.num_machines}: set --num-processes to the same number on every machine"
        )
    chosen = _choose(args, is_training=is_training)
    args.num_processes, args.process_choice = chosen.processes, f"{chosen}; --num-processes N to choose"
    # torch counts the machine's cores and ignores a container's quota.
    if chosen.processes == 1 and chosen.threads < torch.get_num_threads():
        torch.set_num_threads(chosen.threads)


def _choose(args: argparse.Namespace, *, is_training: bool) -> CpuProcesses:
    images_per_batch = 1
    if is_training:
        cfg = build_config(args.config_file, args.opts, args.register, args.imports, warn=False)
        images_per_batch = cfg.SOLVER.IMS_PER_BATCH
    return choose_processes(usable_cores(), images_per_batch, is_training=is_training)


def _check_gpus(num_gpus: int, source: str) -> None:
    present = torch.cuda.device_count()
    if not 0 <= num_gpus <= present:
        raise UserError(
            f"{source} needs {num_gpus} GPUs, this machine has {present}; use --num-gpus {present}"
            + ("" if present else ", which runs on the CPU")
        )


def _join_torchrun(num_local: int, on_gpus: bool, timeout: timedelta) -> None:
    if on_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpus else "gloo", timeout=timeout)
    comm.create_local_process_group(num_local)  # Detectron2's comm needs it
    comm.synchronize()


def _cpu_environment(num_processes: int) -> dict[str, str]:
    if num_processes == 1:
        return {}
    threads = max(usable_cores() // num_processes, 1)
    return {
        "CUDA_VISIBLE_DEVICES": "",  # Detectron2's launch uses NCCL if a GPU is visible
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),  # default: each process uses all cores
        # Threads sleep while they wait for each other. By default they spin, and if another program uses the same core,
        # an iteration takes up to fifty times as long.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
    }


def _quiet_environment() -> dict[str, str]:
    """For new processes, which import Detectron2 before `psf.without_deprecations` can hide its warnings."""
    rules = [f"ignore:`torch.jit:{kind}" for kind in ("FutureWarning", "DeprecationWarning")]
    return {"PYTHONWARNINGS": ",".join([*rules, *filter(None, [os.environ.get("PYTHONWARNINGS")])])}


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """Set environment variables for processes that are started in this context."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _run_and_report(
    to_parent: Connection, main: Callable[[argparse.Namespace], object], args: argparse.Namespace
) -> None:
    """Run `main(args)` in a child process, and tell the parent why it ends early.

    A UserError is sent to the parent, and ends the child with code 2. The number of a signal is sent, too. If it stops
    all processes together, they end without an error, which would make torch terminate the slower ones.
    """
    try:
        with _explained(args):
            main(args)
    except Stopped as stopped:
        to_parent.send(stopped.number)
        if not stopped.is_agreed:
            raise
    except UserError as error:
        to_parent.send(UserError(str(error)[:MAX_MISTAKE]))
        sys.exit(2)
    except RuntimeError as error:
        if is_of_lost_process(error):
            # torch reports the process that ends first, and ends this one: in the usual way, which frees semaphores.
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
            time.sleep(PATIENCE)
        raise
    finally:
        # The end of this process ends the workers of its loaders, which torch would report as their failure.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


@contextmanager
def _explained(args: argparse.Namespace) -> Iterator[None]:
    """`explain_dead_workers`; also names the place where this process waited too long for the others."""
    with explain_dead_workers():
        try:
            yield
        except RuntimeError as error:
            if not is_of_timeout(error):
                raise
            frames = traceback.extract_tb(error.__traceback__)
            place = next(one for one in reversed(frames) if not {"torch", "detectron2"} & set(Path(one.filename).parts))
            raise UserError(
                f"process {comm.get_rank()} waited {_timeout(args).total_seconds():g} s for the others in {place.name} "
                f"({place.filename}:{place.lineno}): one of them hangs or is slow; raise --collective-timeout "
                "(seconds) if it is only slow"
            ) from error
