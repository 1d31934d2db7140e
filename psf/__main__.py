"""The command `psf`, also as `python -m psf`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise

import psf
from psf.commands import COMMANDS, GROUPS, load_command, open_streams
from psf.errors import UserError, printable
from psf.model_zoo import find_config_file, find_model

__all__ = ["main"]


def main(words: Sequence[str] | None = None) -> int:
    """Run `psf COMMAND ...`; returns the exit code."""
    open_streams()
    words = list(sys.argv[1:] if words is None else words)
    if "_ARGCOMPLETE" in os.environ:
        complete()
    if words and words[0] in COMMANDS:
        needs_libraries = words[0] != "doctor" and not {"-h", "--help"} & set(words)
        if problem := mistyped_file(words[1:]):
            sys.stderr.write(f"error: {problem}\n")
            return 2
        try:
            if needs_libraries and (problem := psf.detectron2_problem()):
                raise ImportError(problem)
            with psf.without_deprecations():
                command = load_command(words[0])
        except (ImportError, OSError) as error:  # OSError: a shared library of torch is missing
            sys.stderr.write(
                f"error: psf {words[0]} cannot start ({error}); `{sys.executable} -m psf doctor` prints the fix\n"
            )
            return 2
        except KeyboardInterrupt:  # libraries take seconds to load
            sys.stderr.write("stopped by Ctrl-C\n")
            return 130
        with psf.without_deprecations():  # some commands import more when they run
            return int(command.main(words[1:]))
    if not words:
        build_parser().print_help()
        return 0
    build_parser().parse_args(words)  # exits: --help, --version, or an unknown command
    return 0


def mistyped_file(words: Sequence[str]) -> str:
    """What is wrong with the value of --config-file or --model, as far as that takes no seconds of imports; or ""."""
    for flag, value in _flags(words):
        try:
            if flag == "--config-file":
                find_config_file(value)
            elif flag == "--model":
                find_model(value)
        except UserError as error:
            return printable(error)
    return ""


def _flags(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    for word, following in pairwise([*words, ""]):
        flag, equals, value = word.partition("=")
        if equals or following:
            yield flag, value if equals else following


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command names; each command parses its own arguments."""
    groups = ["".join(f"\n  {name:<17}{text}" for name, text in group.items()) for group in GROUPS.values()]
    parser = argparse.ArgumentParser(
        prog="psf",
        description="Panoptic SegFormer: train, evaluate and use panoptic segmentation models.",
        epilog="commands:" + "\n".join(groups) + "\n\n`psf COMMAND --help` shows the arguments of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="psf [-h] [--version] COMMAND ...",
    )
    parser.add_argument("--version", action="version", version=f"psf {psf.__version__}")
    parser.add_argument("command", choices=list(COMMANDS), metavar="COMMAND", help=argparse.SUPPRESS)
    return parser


def complete() -> None:
    """Print completions for the shell (argcomplete), and exit.

    A command's parser is loaded only if the command line contains the command.
    """
    try:
        import argcomplete
    except ImportError:
        sys.exit(1)
    parser = argparse.ArgumentParser(prog="psf")
    parser.add_argument("--version", action="store_true")
    commands = parser.add_subparsers()
    typed = os.environ.get("COMP_LINE", "").split()[1:]
    for name in COMMANDS:
        parents = [load_command(name).build_parser()] if typed[:1] == [name] else []
        commands.add_parser(name, parents=parents, add_help=not parents)
    argcomplete.autocomplete(parser)


if __name__ == "__main__":
    sys.exit(main())
