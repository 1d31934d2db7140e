"""The log of a run: OUTPUT_DIR/log.txt gets all messages, the screen only the important ones."""

from __future__ import annotations

import argparse
import logging
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.logger import setup_logger
from tabulate import tabulate
from torch import nn

import psf
from psf.data import load_dataset
from psf.engine.hooks import checkpoint_period
from psf.structures import list_classes

__all__ = ["TimeLeftHook", "describe_backbone", "log_environment", "log_run", "set_up_loggers"]

logger = logging.getLogger(__name__)

# Messages of Detectron2 on the screen, besides warnings: losses, time left, progress of an evaluation.
SHOWN = ("detectron2.utils.events", "detectron2.evaluation.evaluator")
WIDTH = 96  # columns of the summary
NUM_MEASURED = 10  # iterations, before the end of the training is predicted


def set_up_loggers(folder: str) -> None:
    """Detectron2's handlers for the messages of fvcore, Detectron2 and psf, with fewer messages on the screen.

    In the main process they write to the screen and to log.txt in `folder`, in the others to a log.txt of their own.
    """
    for name in ("fvcore", "detectron2", "psf"):
        for handler in setup_logger(folder, distributed_rank=comm.get_rank(), name=name).handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream in (sys.stdout, sys.stderr):
                handler.addFilter(_is_for_screen)  # does nothing if it is there


def _is_for_screen(record: logging.LogRecord) -> bool:
    if record.levelno >= logging.WARNING or record.name in SHOWN:
        return True
    return record.levelno >= logging.INFO and record.name.startswith("psf.")


def log_environment(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Log what Detectron2's `default_setup` logs, which would also overwrite config.yaml; to log.txt only."""
    rank, world_size = comm.get_rank(), comm.get_world_size()
    logger.debug("Rank of current process: %d. World size: %d", rank, world_size)
    with _without_warnings_of_cuda():
        logger.debug("Environment info:\n%s", collect_env_info())
    logger.debug("Command line arguments: %s", args)
    text = Path(args.config_file).read_text("utf-8")
    logger.debug("Contents of args.config_file=%s:\n%s", args.config_file, text)
    logger.debug("Running with full config:\n%s", cfg.dump())


@contextmanager
def _without_warnings_of_cuda() -> Iterator[None]:
    """Collecting the environment imports a module of torch that warns if a machine has CUDA's compiler but no GPU."""
    other = logging.getLogger("torch.utils.cpp_extension")
    level = other.level
    other.setLevel(logging.ERROR)
    try:
        yield
    finally:
        other.setLevel(level)


def log_run(
    cfg: CfgNode, args: argparse.Namespace, model: nn.Module, *, source: str, num_images: int | None = None
) -> None:
    """Log what a run is about to do, on one screen, in the main process.

    Args:
        cfg: of the run.
        args: of its command line.
        model: whose parameters are counted.
        source: of the weights.
        num_images: for training; None: the run only evaluates, or they are unknown.
    """
    if comm.is_main_process():
        rows = _describe_run(cfg, args, model, source, num_images)
        lines = [(title, textwrap.fill(text, WIDTH, break_on_hyphens=False)) for title, text in rows]
        what = "evaluation" if args.eval_only else "training"
        logger.info("psf %s, %s\n%s", psf.__version__, what, tabulate(lines, tablefmt="plain"))


def _describe_run(
    cfg: CfgNode, args: argparse.Namespace, model: nn.Module, source: str, num_images: int | None
) -> Iterator[tuple[str, str]]:
    yield "output", f"{cfg.OUTPUT_DIR} (log.txt: the environment and all messages; config.yaml: all keys)"
    model_file = getattr(args, "model", None)  # of `psf evaluate`; its config is inside
    yield "config", " ".join([model_file or _short_path(args.config_file), *args.opts])
    trains = not args.eval_only
    if trains:
        count = "" if num_images is None else f": {num_images:,} images"
        yield "training data", f"{', '.join(cfg.DATASETS.TRAIN)}{count}"
    for name in cfg.DATASETS.TEST:
        yield "evaluation", f"{name}: {len(load_dataset(name)):,} images{_evaluation_times(cfg) if trains else ''}"
    yield "classes", _describe_classes((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    yield "model", _describe_model(cfg, model)
    yield "weights", source
    yield "device", _describe_device(cfg, args)
    named = cfg.MODEL.PSF.MSDA
    yield "deformable attention", f"{named}: the choice is logged at its first use" if named == "auto" else named
    if trains:
        yield from _describe_schedule(cfg, num_images)


def _short_path(path: str) -> str:
    """A path below the current folder or in psf's configs, without the folders above."""
    for folder in (Path.cwd(), Path(psf.__file__).parent, Path(psf.__file__).parent.parent):
        try:
            return str(Path(path).resolve().relative_to(folder.resolve()))
        except ValueError:
            continue
    return path


def _evaluation_times(cfg: CfgNode) -> str:
    period = cfg.TEST.EVAL_PERIOD
    return f", every {period:,} iterations and at the end" if 0 < period < cfg.SOLVER.MAX_ITER else ", at the end"


def _describe_classes(names: Sequence[str]) -> str:
    classes = next((found for name in names if (found := list_classes(MetadataCatalog.get(name)))), [])
    parts = []
    for kind, is_thing in (("things", True), ("stuff", False)):
        of_kind = [one.name for one in classes if one.is_thing is is_thing]
        listed = ", ".join(of_kind[:8]) + (", ..." if len(of_kind) > 8 else "")
        noun = "thing" if is_thing and len(of_kind) == 1 else kind
        parts.append(f"{len(of_kind)} {noun}" + (f" ({listed})" if of_kind else ""))
    return "; ".join(parts)


def _describe_model(cfg: CfgNode, model: nn.Module) -> str:
    sizes = [(one.numel(), one.requires_grad) for one in model.parameters()]
    total, trained = sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)
    numbers = f"{total / 1e6:.1f} million parameters"
    if total - trained > total / 100:  # FREEZE_AT, and not a few scales of a norm
        numbers += f", {(total - trained) / 1e6:.1f} million of them frozen"
    return f"{cfg.MODEL.META_ARCHITECTURE}, {describe_backbone(cfg)}; {numbers}"


def describe_backbone(cfg: CfgNode) -> str:
    """The backbone of a config in words: "backbone ResNet-50"."""
    name, node = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.PSF
    details = {
        "build_resnet_backbone": f"ResNet-{cfg.MODEL.RESNETS.DEPTH}",
        "build_psf_timm_backbone": f"{node.TIMM.NAME} of timm",
        "build_psf_swin_backbone": f"Swin with {node.SWIN.EMBED_DIM} channels and {list(node.SWIN.DEPTHS)} blocks",
    }
    return f"backbone {details.get(name, name)}"


def _describe_device(cfg: CfgNode, args: argparse.Namespace) -> str:
    number = comm.get_world_size()
    if torch.device(cfg.MODEL.DEVICE).type == "cuda":
        name = torch.cuda.get_device_name()
        device = f"{number} x {name}" if number > 1 else name
    else:
        threads = torch.get_num_threads()
        device = (
            getattr(args, "process_choice", None)
            or f"CPU, {_count(number, 'process')}, each with {_count(threads, 'thread')}"
        )
    amp = cfg.SOLVER.AMP
    return device + (f"; mixed precision ({amp.DTYPE})" if amp.ENABLED and not args.eval_only else "")


def _count(number: int, noun: str) -> str:
    plural = "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{plural * (number != 1)}"


def _describe_schedule(cfg: CfgNode, num_images: int | None) -> Iterator[tuple[str, str]]:
    iterations, batch = cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH
    number = iterations * batch / num_images if num_images else 0.0
    epochs = f" ({f'{number:,.1f}' if number >= 1 else f'{number:.1g}'} epochs)" if num_images else ""
    yield "schedule", f"{iterations:,} iterations of {batch} images{epochs}, learning rate {cfg.SOLVER.BASE_LR:g}"
    period, seconds = checkpoint_period(cfg)
    when = f"every {period:,} iterations" if period else "at the end only"
    yield "checkpoints", when + (f" or {seconds / 60:g} minutes" if seconds else "")


class TimeLeftHook(HookBase):
    """Logs that the first iteration is done, and a few iterations later, when the last one will be."""

    def before_train(self) -> None:
        self._start = self._first = time.monotonic()

    def after_step(self) -> None:
        number = self.trainer.iter - self.trainer.start_iter
        if number == 0:
            self._first = time.monotonic()
            logger.info("The first iteration took %.1f s", self._first - self._start)
        elif number == NUM_MEASURED:
            seconds = (time.monotonic() - self._first) / NUM_MEASURED
            left = timedelta(seconds=round(seconds * (self.trainer.max_iter - self.trainer.iter - 1)))
            end = datetime.now() + left
            when = end.strftime("%H:%M" if end.date() == datetime.now().date() else "%Y-%m-%d %H:%M")
            logger.info(
                "%.2f s an iteration: the last one ends in %s, at about %s; evaluation follows",
                seconds,
                left,
                when,
            )
