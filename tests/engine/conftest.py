"""A run of the mini set: its config file and arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from psf.engine import argument_parser, main
from tests.mini_set import NAME, register_mini_set, unregister_mini_set, write_mini_set

CONFIG = f"""
VERSION: 2
MODEL: {{META_ARCHITECTURE: PsfTestColorModel, WEIGHTS: ""}}
DATASETS: {{TRAIN: [{NAME}], TEST: [{NAME}]}}
DATALOADER: {{NUM_WORKERS: 0}}
INPUT: {{MIN_SIZE_TRAIN: [32], MIN_SIZE_TEST: 32}}
SOLVER: {{IMS_PER_BATCH: 2, BASE_LR: 0.01, MAX_ITER: 2, STEPS: [], WARMUP_ITERS: 0}}
SEED: 1
"""

ParseArgs = Callable[..., argparse.Namespace]


@pytest.fixture
def mini_root(tmp_path: Path) -> Path:
    """Folder of the written mini set."""
    write_mini_set(tmp_path / "mini")
    return tmp_path / "mini"


@pytest.fixture
def mini(mini_root: Path) -> Iterator[str]:
    """Name of the registered mini set."""
    yield register_mini_set(mini_root)
    unregister_mini_set()


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """A config that trains two iterations of the colour model."""
    path = tmp_path / "mini.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def parse_args(config_file: Path, tmp_path: Path) -> ParseArgs:
    """Command line of that config on the CPU: parse_args("--resume", "SEED", "2"); OUTPUT_DIR is tmp_path/output."""

    def parse(*words: str) -> argparse.Namespace:
        fixed = ["--config-file", str(config_file), "--num-gpus", "0"]
        args = argument_parser().parse_args([*fixed, *words])
        args.opts = ["OUTPUT_DIR", str(tmp_path / "output"), *args.opts]
        return args

    return parse


@pytest.fixture
def trained(mini: str, parse_args: ParseArgs, tmp_path: Path) -> Path:
    """OUTPUT_DIR of a training of one iteration."""
    main(parse_args("SOLVER.MAX_ITER", "1"))
    return tmp_path / "output"
