"""Check the environment and print the command that fixes each problem.

Exit code 0 if psf can run, else 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from psf.commands import command_parser
from psf.tools.doctor import main as examine_and_report

__all__ = ["build_parser", "main"]


def build_parser() -> argparse.ArgumentParser:
    """Build a parser without arguments."""
    return command_parser("doctor", __doc__)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    build_parser().parse_args(words)
    return examine_and_report()
