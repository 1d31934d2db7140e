"""Parse command lines, build configs, and set up the output folder and loggers."""

from __future__ import annotations

import argparse
import logging
import math
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DEFAULT_TIMEOUT, default_argument_parser
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from psf.config import add_psf_config, import_user_modules
from psf.data import PanopticSet, register_from_config
from psf.data.own_files import check_replaceable
from psf.engine.config.checks import check_config, warn_of_keys_without_effect
from psf.engine.config.files import find_config_file, merge_config_file, merge_options
from psf.engine.num_queries import resolve_num_queries
from psf.engine.run_folder import (
    CONFIG_FILE,
    WAY_OUT,
    check_kinds,
    check_log,
    choose_evaluation_folder,
    holds_training,
    prepare_run_folder,
    write_config_file,
)
from psf.errors import UserError
from psf.meta_arch import store_classes

__all__ = [
    "add_import_flag",
    "add_register_flag",
    "argument_parser",
    "build_config",
    "output_folder",
    "setup",
    "write_config",
]

logger = logging.getLogger(__name__)


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's parser with psf's flags; without a GPU `--num-gpus` is 0 by default.

    `num_processes` is a number from 1, or None for "auto", which `psf.engine.launch` resolves.
    """
    parser = default_argument_parser()
    parser.add_argument(
        "--num-processes",
        type=_process_count,
        metavar="N",
        help='processes per machine on the CPU, with --num-gpus 0; "auto" (default) uses the cores of the machine',
    )
    add_register_flag(parser)
    add_import_flag(parser)
    parser.add_argument(
        "--collective-timeout",
        type=_seconds,
        default=DEFAULT_TIMEOUT.total_seconds(),
        metavar="SECONDS",
        help="processes that wait longer than this for each other end with an error [%(default)g]",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the training in OUTPUT_DIR, and a config.yaml there that psf has not written",
    )
    parser.set_defaults(num_gpus=min(torch.cuda.device_count(), 1))
    return parser


def _process_count(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'expected "auto" or a number from 1, found {text!r}')
    return int(text)


def _seconds(text: str) -> float:
    try:
        if 0 < (seconds := float(text)) < math.inf:
            return seconds
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected a number of seconds, found {text!r}")


def add_register_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--register`, which can be repeated; its values are for `build_config`."""
    parser.add_argument(
        "--register",
        action="append",
        default=[],
        metavar="NAME=JSON,PNGS,IMAGES",
        help="register a panoptic set: its JSON, the folder of its PNGs, the folder of its images; can be repeated. "
        "Use it with DATASETS.TRAIN NAME or DATASETS.TEST NAME",
    )


def add_import_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--import`, which can be repeated; its names, in `args.imports`, are for `build_config`."""
    parser.add_argument(
        "--import",
        action="append",
        default=[],
        dest="imports",
        metavar="MODULE",
        help="import your own module, such as my_package.my_decoder, whose classes register themselves, before the "
        "model is built; can be repeated; config.yaml stores it as MODEL.PSF.IMPORTS",
    )


def setup(args: argparse.Namespace, *, is_training: bool = True, folder_name: str = "evaluation") -> CfgNode:
    """Build the frozen config of a run, and set up loggers and seeds as Detectron2's `default_setup` does.

    Writes config.yaml and log.txt into OUTPUT_DIR, and no other files. The config.yaml of an earlier training that is
    resumed or overwritten stays until `write_config` is called. `--num-gpus 0` sets MODEL.DEVICE to "cpu".
    The name of a config that comes with psf becomes its path in `args.config_file`. MODEL.PSF.NUM_THING_QUERIES -1
    becomes a number.

    A training locks OUTPUT_DIR (`psf.engine.run_folder`); `psf.engine.main` unlocks it. An evaluation writes to
    `output_folder`; `args.run_dir` is the OUTPUT_DIR of the config, where `--resume` finds its checkpoint.

    Args:
        args: of `argument_parser`; Detectron2's own parser has no `overwrite`, which then is False.
        is_training: False for programs that only evaluate, as `--eval-only` does.
        folder_name: of the folder of an evaluation.

    Raises:
        UserError: as `build_config` and `resolve_num_queries` do; if OUTPUT_DIR cannot be written, or holds files that
            would be lost; if `--num-gpus` is not 0 and MODEL.DEVICE is "cpu".
    """
    is_training = is_training and not args.eval_only
    args.config_file = find_config_file(args.config_file)
    cfg = build_config(args.config_file, args.opts, args.register, args.imports, warn=False)
    if args.num_gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
    elif cfg.MODEL.DEVICE == "cpu":
        raise UserError(f'--num-gpus is {args.num_gpus}, MODEL.DEVICE is "cpu": set MODEL.DEVICE cuda or --num-gpus 0')
    num_queries = resolve_num_queries(cfg, is_training=is_training, resume=args.resume)
    args.run_dir = cfg.OUTPUT_DIR
    if not is_training:
        # The main process's choice counts for all: it writes there while the others may still choose.
        cfg.OUTPUT_DIR = comm.all_gather(output_folder(cfg, args.opts, folder_name))[0]
    cfg.freeze()
    if comm.is_main_process():
        _prepare_folder(cfg, args, is_training=is_training)
    logging.raiseExceptions = False  # on a full disk, each line of the log would print a traceback
    for name in ("fvcore", "detectron2", "psf"):
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name=name)
    _log_run(cfg, args)
    if _has_folder(args.opts) and args.run_dir != cfg.OUTPUT_DIR:
        logger.warning("OUTPUT_DIR %s holds a training: the results go to %s", args.run_dir, cfg.OUTPUT_DIR)
    _warn(cfg, args.register)  # also in log.txt
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())
    if is_training:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    if num_queries is not None:
        num_queries.log()
    return cfg


def output_folder(cfg: CfgNode, opts: Sequence[str], folder_name: str) -> str:
    """Where an evaluation writes: a folder of its own below OUTPUT_DIR.

    An OUTPUT_DIR on the command line is taken as it is, unless it holds a training.
    """
    if _has_folder(opts) and not holds_training(Path(cfg.OUTPUT_DIR)):
        return str(cfg.OUTPUT_DIR)
    return str(choose_evaluation_folder(cfg, folder_name))


def _has_folder(opts: Sequence[str]) -> bool:
    return "OUTPUT_DIR" in opts[::2]


def _prepare_folder(cfg: CfgNode, args: argparse.Namespace, *, is_training: bool) -> None:
    """Check OUTPUT_DIR, lock it for a training, and write config.yaml.

    That of an earlier training, which is resumed or overwritten, stays until this one starts (`write_config`).
    """
    _check_writable(cfg.OUTPUT_DIR)
    folder, overwrite = Path(cfg.OUTPUT_DIR), getattr(args, "overwrite", False)
    if is_training:
        prepare_run_folder(folder, resume=args.resume, overwrite=overwrite, weights=cfg.MODEL.WEIGHTS)
    else:
        check_kinds(folder)
        check_log(folder)
        check_replaceable([folder / CONFIG_FILE], overwrite=overwrite, way_out=WAY_OUT)
    config = folder / CONFIG_FILE
    if not (is_training and (args.resume or overwrite) and config.is_file()):
        write_config_file(cfg, overwrite=overwrite)


def _log_run(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Log what Detectron2's `default_setup` logs, which would also overwrite config.yaml."""
    logger.info("Rank of current process: %d. World size: %d", comm.get_rank(), comm.get_world_size())
    logger.info("Environment info:\n%s", collect_env_info())
    logger.info("Command line arguments: %s", args)
    logger.info("Contents of args.config_file=%s:\n%s", args.config_file, Path(args.config_file).read_text("utf-8"))
    logger.info("Running with full config:\n%s", cfg.dump())
    logger.info("Output folder: %s", cfg.OUTPUT_DIR)
    if choice := getattr(args, "process_choice", None):
        logger.info(choice)


def write_config(cfg: CfgNode, *, overwrite: bool = False) -> None:
    """`write_config_file` in the main process."""
    if comm.is_main_process():
        write_config_file(cfg, overwrite=overwrite)


def build_config(
    config_file: str,
    opts: Sequence[str] = (),
    register: Sequence[str] = (),
    imports: Sequence[str] = (),
    *,
    warn: bool = True,
) -> CfgNode:
    """Build a config from the defaults of Detectron2 and psf, then a yaml, then KEY VALUE pairs.

    Also imports the modules of MODEL.PSF.IMPORTS, registers the panoptic sets of DATASETS.PSF_REGISTER, and sets
    MODEL.PSF.CLASSES to the classes of the datasets, if these are here.

    Args:
        config_file: path of a yaml, or the name of one that comes with psf ("coco/psf_R50_24ep.yaml").
        opts: KEY VALUE pairs. Values of DATASETS.TRAIN and DATASETS.TEST may be plain names: "one" or "one,two".
        register: values of `--register`, in addition to DATASETS.PSF_REGISTER.
        imports: values of `--import`, in addition to MODEL.PSF.IMPORTS.
        warn: log a warning, in the main process, if keys have no effect on the model, or if `register` names a set that
            the config does not use.

    Raises:
        UserError: if the file is missing or refused (`merge_config_file`), if a key is unknown (the message has the
            nearest known one) or has no value, if a value is not valid or has no effect (`check_config`), if a set
            cannot be registered (`psf.data.register_from_config`), or a module cannot be imported
            (`psf.config.import_user_modules`).
    """
    cfg = get_cfg()
    add_psf_config(cfg)
    merge_config_file(cfg, find_config_file(config_file))
    merge_options(cfg, list(opts))
    cfg.MODEL.PSF.IMPORTS = list(dict.fromkeys([*cfg.MODEL.PSF.IMPORTS, *imports]))
    import_user_modules(cfg)
    check_config(cfg)
    register_from_config(cfg, register)
    with suppress(UserError):  # of a set whose files are missing: `check_dataset` describes it
        store_classes(cfg)
    if warn:
        _warn(cfg, register)
    return cfg


def _warn(cfg: CfgNode, register: Sequence[str]) -> None:
    """In the main process, warn of keys and sets that have no effect."""
    if comm.is_main_process():
        warn_of_keys_without_effect(cfg)
        _warn_if_unused(cfg, register)


def _warn_if_unused(cfg: CfgNode, register: Sequence[str]) -> None:
    names = [PanopticSet.parse(text).name for text in register]
    if names and not {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST} & set(names):
        logger.warning(
            "--register: %s is not used; add after the flags: DATASETS.TRAIN %s or DATASETS.TEST %s",
            ", ".join(names),
            names[0],
            names[-1],
        )


def _check_writable(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"OUTPUT_DIR {folder!r} cannot be written: {error.strerror}") from error
