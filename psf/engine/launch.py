"""Starts one process per GPU, several on the CPU, or joins those that torchrun started."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from detectron2.engine import DEFAULT_TIMEOUT
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from psf.engine.arguments import argument_parser, build_config
from psf.engine.mistakes import read_mistake, run_and_note_mistakes
from psf.engine.processes import CpuProcesses, choose_processes, usable_cores

__all__ = ["launch"]


def launch(main: Callable[[argparse.Namespace], object], args: argparse.Namespace, *, is_training: bool = True) -> None:
    """Run `main(args)` in every process of this machine.

    Under torchrun this process is one of them. Otherwise Detectron2's launch starts `--num-gpus` processes, or
    `--num-processes` on the CPU if `--num-gpus` is 0. They communicate by NCCL on GPUs and by gloo on the CPU.
    `--num-processes auto` uses the cores of the machine, see `choose_processes`; for training this reads the config.

    Args:
        main: a function that a new process can import. Its result is dropped. In a single process it runs here.
        args: of `psf.engine.argument_parser`. `num_processes` is set to the chosen number, and `process_choice` to a
            line for the log.
        is_training: False if `main` only evaluates; so does `--eval-only`.

    Raises:
        ValueError: if there are fewer GPUs than asked for, or if the two numbers contradict; a mistake of the user
            that `main` finds, also in another process.
    """
    is_torchrun = {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys()
    on_gpus = args.num_gpus > 0
    if is_torchrun:
        num_local = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        _check_gpus(num_local if on_gpus else 0, f"torchrun with {num_local} processes on this machine")
        _join_torchrun(num_local, on_gpus)
        main(args)
        dist.destroy_process_group()
        return
    _check_gpus(args.num_gpus, f"--num-gpus {args.num_gpus}")
    if on_gpus and args.num_processes is not None and args.num_processes > 1:
        raise ValueError(f"--num-processes {args.num_processes} is for the CPU, but --num-gpus is {args.num_gpus}")
    if on_gpus:
        _start(main, args, args.num_gpus)
        return
    if args.num_processes is None:
        if args.num_machines > 1:
            raise ValueError(
                f"--num-machines is {args.num_machines}: give --num-processes, the same number on every machine"
            )
        chosen = _choose(args, is_training=is_training and not args.eval_only)
        args.num_processes, args.process_choice = chosen.processes, f"{chosen}; --num-processes N to choose"
        # torch counts the machine's cores, not those that a container may use.
        if chosen.processes == 1 and chosen.threads < torch.get_num_threads():
            torch.set_num_threads(chosen.threads)
    # Detectron2's default port is one per user: a second job beside the first could not start.
    if args.num_machines == 1 and args.dist_url == argument_parser().get_default("dist_url"):
        args.dist_url = "auto"
    with _environment(_cpu_environment(args.num_processes)):
        _start(main, args, args.num_processes)


def _start(main: Callable[[argparse.Namespace], object], args: argparse.Namespace, num_processes: int) -> None:
    """Run `main(args)` in so many processes on this machine; here, if it is one on one machine."""
    start = partial(
        detectron2_launch,
        num_gpus_per_machine=num_processes,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
    )
    if num_processes * args.num_machines == 1:
        start(main, args=(args,))
        return
    with tempfile.TemporaryDirectory(prefix="psf-launch-") as folder:
        try:
            start(run_and_note_mistakes, args=(main, folder, args))
        except (ProcessExitedException, ProcessRaisedException):
            mistake = read_mistake(folder)
            if mistake is None:
                raise
            raise ValueError(mistake) from None


def _choose(args: argparse.Namespace, *, is_training: bool) -> CpuProcesses:
    images_per_batch = 1
    if is_training:
        images_per_batch = build_config(args.config_file, args.opts, args.register, warn=False).SOLVER.IMS_PER_BATCH
    return choose_processes(usable_cores(), images_per_batch, is_training=is_training)


def _check_gpus(num_gpus: int, asked: str) -> None:
    present = torch.cuda.device_count()
    if not 0 <= num_gpus <= present:
        raise ValueError(
            f"{asked} needs {num_gpus} GPUs, this machine has {present}; give --num-gpus {present}"
            + ("" if present else ", which runs on the CPU")
        )


def _join_torchrun(num_local: int, on_gpus: bool) -> None:
    if on_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpus else "gloo", timeout=DEFAULT_TIMEOUT)
    comm.create_local_process_group(num_local)  # Detectron2's comm needs it
    comm.synchronize()


def _cpu_environment(num_processes: int) -> dict[str, str]:
    if num_processes == 1:
        return {}
    threads = max(usable_cores() // num_processes, 1)
    return {
        "CUDA_VISIBLE_DEVICES": "",  # Detectron2's launch takes NCCL wherever it sees a GPU
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),  # each process would use all cores
        # Threads that wait for each other sleep. By default they spin, which on a core that another program wants too
        # makes an iteration up to fifty times as long.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
    }


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """Environment variables for the processes that are started meanwhile."""
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
