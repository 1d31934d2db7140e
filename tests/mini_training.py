"""train_net.py for the mini set, for tests that start processes: PSF_TEST_MINI names the set's folder."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from psf.engine import argument_parser, launch, main
from tests.mini_set import register_mini_set


def train(args: argparse.Namespace) -> None:
    register_mini_set(Path(os.environ["PSF_TEST_MINI"]))
    main(args)


if __name__ == "__main__":
    launch(train, argument_parser().parse_args())
