"""Starts one process per GPU, several on the CPU, or joins those that torchrun started."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from detectron2.engine import DEFAULT_TIMEOUT
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm

__all__ = ["launch"]


def launch(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    """Run `main(args)` in every process of this machine.

    Under torchrun this process is one of them; else Detectron2's launch starts `--num-gpus` processes, or
    `--num-processes` on the CPU where `--num-gpus` is 0. They talk by NCCL on GPUs and by gloo on the CPU.

    Args:
        main: a function that a new process can import; its result is dropped.
        args: of `psf.engine.argument_parser`.

    Raises:
        ValueError: if there are fewer GPUs than asked for, or if the two numbers contradict.
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
    if on_gpus and args.num_processes > 1:
        raise ValueError(f"--num-processes {args.num_processes} is for the CPU, but --num-gpus is {args.num_gpus}")
    num_processes = args.num_gpus if on_gpus else args.num_processes
    with _environment({} if on_gpus else _cpu_environment(num_processes)):
        detectron2_launch(
            main,
            num_processes,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )


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
    # Detectron2's launch takes NCCL wherever it sees a GPU. And each process would use all cores.
    threads = max((os.cpu_count() or 1) // num_processes, 1)
    return {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}


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
