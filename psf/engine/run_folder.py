"""OUTPUT_DIR of a run: what it already holds, folders of evaluations, and a lock while a training writes to it."""

from __future__ import annotations

import atexit
import fcntl
import os
import re
import socket
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from detectron2.config import CfgNode

from psf.data.files import check_regular, remove_stale_drafts
from psf.data.own_files import MANIFEST, check_replaceable, free_name, is_own, write_own_text
from psf.errors import UserError

__all__ = [
    "CONFIG_FILE",
    "WAY_OUT",
    "check_kinds",
    "check_log",
    "check_run_folder",
    "choose_evaluation_folder",
    "comment_config_file",
    "has_checkpoints",
    "holds_training",
    "lock_folder",
    "prepare_run_folder",
    "remove_run",
    "unlock_folder",
    "write_config_file",
]

CONFIG_FILE, LOCK_FILE = "config.yaml", ".psf-lock"
CHECKPOINT = re.compile(r"model_(\d{7,}|final)\.pth")  # as Detectron2's hooks name them
OTHER_FILES = re.compile(r"last_checkpoint|metrics\.json|events\.out\.tfevents\..*")
STREAMS = re.compile(r"log\.txt(\.rank\d+)?|metrics(_\d+)?\.json")  # lines are added to them
LOG_LINE = re.compile(rb"\[\d\d/\d\d \d\d:\d\d:\d\d\] ")  # its beginning, as Detectron2's loggers write it
LOCK_TEXT = re.compile(rb"process \d+ on .*\n")
WAY_OUT = "name another OUTPUT_DIR, or replace it with --overwrite"

_locks: dict[Path, int] = {}  # of this process: lock file -> its handle


def has_checkpoints(folder: Path) -> bool:
    """Whether a training has written checkpoints to a folder."""
    return any(CHECKPOINT.fullmatch(file.name) for file in _files(folder))


def holds_training(folder: Path) -> bool:
    """Whether a folder has checkpoints of a training, or another process trains there."""
    try:
        _check_lock(folder)
    except UserError:
        return True
    return has_checkpoints(folder)


def check_run_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Check that a training may write to a folder; changes nothing.

    Raises:
        UserError: if another process trains there; as `check_kinds` does; unless with `resume`, if log.txt is not that
            of a run; unless with `resume` or `overwrite`, if the folder has a config.yaml that psf has not written, or
            checkpoints of another training.
    """
    _check_lock(folder)
    check_kinds(folder)
    if not resume:
        check_log(folder)
    if resume or overwrite:
        return
    check_replaceable([folder / CONFIG_FILE], way_out=WAY_OUT)
    found = [name for file in _files(folder) if CHECKPOINT.fullmatch(name := file.name) or name == "last_checkpoint"]
    if found:
        raise UserError(
            f"OUTPUT_DIR {folder} holds another training ({found[0]}): continue it with --resume, {WAY_OUT}"
        )


def check_kinds(folder: Path) -> None:
    """Raise a UserError if what a run adds to, replaces or removes is a link, a folder or a pipe in OUTPUT_DIR.

    A checkpoint may be a link to a file: a later one replaces the link alone.
    """
    for file in _files(folder):
        if STREAMS.fullmatch(file.name) or OTHER_FILES.fullmatch(file.name) or file.name == MANIFEST:
            check_regular(file, links=False)
        elif CHECKPOINT.fullmatch(file.name):
            check_regular(file)


def check_log(folder: Path) -> None:
    """Raise a UserError if OUTPUT_DIR has a log.txt of another kind, to which a run would add its lines."""
    for file in _files(folder):
        if file.name.startswith("log.txt") and STREAMS.fullmatch(file.name):
            with file.open("rb") as log:
                start = log.read(100)
            if start and not LOG_LINE.match(start):
                raise UserError(
                    f"{file} is not the log of a run, which would add to it: move it away, or name another OUTPUT_DIR"
                )


def prepare_run_folder(folder: Path, *, resume: bool, overwrite: bool, weights: str) -> None:
    """Lock an existing folder for a training, and `check_run_folder`; `remove_run` removes what `overwrite` replaces.

    Args:
        folder: OUTPUT_DIR.
        resume, overwrite: of the command line.
        weights: MODEL.WEIGHTS.

    Raises:
        UserError: as `check_run_folder`; if the weights are among the files to remove.
    """
    lock_folder(folder)
    try:
        check_run_folder(folder, resume=resume, overwrite=overwrite)
        remove_stale_drafts(folder)
        if overwrite:
            check_replaceable([folder / CONFIG_FILE], overwrite=True, way_out=WAY_OUT)
        if overwrite and not resume:
            _check_weights_stay(folder, weights)
    except UserError:
        unlock_folder(folder)
        raise


def remove_run(folder: Path) -> None:
    """Remove checkpoints and curves of an earlier training, so that those of two trainings do not mix."""
    for file in _files_of_run(folder):
        file.unlink()


def _files_of_run(folder: Path) -> list[Path]:
    return [file for file in _files(folder) if CHECKPOINT.fullmatch(file.name) or OTHER_FILES.fullmatch(file.name)]


def _check_weights_stay(folder: Path, weights: str) -> None:
    """Raise a UserError if `remove_run` would remove MODEL.WEIGHTS."""
    file = weights.partition("?")[0]  # without its option
    if os.path.isfile(file) and any(os.path.exists(old) and old.samefile(file) for old in _files_of_run(folder)):
        raise UserError(
            f"--overwrite would remove MODEL.WEIGHTS {file}, which is a checkpoint in OUTPUT_DIR {folder}: move it "
            "away, or name another OUTPUT_DIR"
        )


def choose_evaluation_folder(cfg: CfgNode, name: str) -> Path:
    """OUTPUT_DIR/NAME, or NAME_2, NAME_3, ... if that one holds results of another config.

    The same config gets the same folder again. Nothing is created.

    Args:
        cfg: of the evaluation; its OUTPUT_DIR is usually that of a training.
        name: of the kind of evaluation.
    """
    number = 1
    while True:
        folder = Path(cfg.OUTPUT_DIR, name if number == 1 else f"{name}_{number}")
        config = folder / CONFIG_FILE
        if not any(_files(folder)) or (is_own(config) and _without_comments(config) == _dump(cfg, folder)):
            return folder
        number += 1


def write_config_file(cfg: CfgNode, *, overwrite: bool = False) -> None:
    """Write a config to OUTPUT_DIR/config.yaml, or with a warning to config_2.yaml if psf has not written that file.

    `overwrite` replaces it.
    """
    path = Path(cfg.OUTPUT_DIR, CONFIG_FILE)
    write_own_text(path if overwrite else free_name(path), cfg.dump(), overwrite=overwrite, durable=True)


def comment_config_file(folder: Path, comments: Iterable[str]) -> None:
    """Replace the comments at the end of a run's config.yaml, which no reader of YAML sees.

    No effect if the file is missing, or has been edited since psf wrote it.
    """
    path = Path(folder, CONFIG_FILE)
    if is_own(path):
        text = _without_comments(path) + "".join(f"# {comment}\n" for comment in comments)
        if text != path.read_text(encoding="utf-8"):
            write_own_text(path, text, durable=True)


def _without_comments(config: Path) -> str:
    lines = config.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("# "))  # a value that begins a line has no "# "


def _dump(cfg: CfgNode, folder: Path) -> str:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(folder)
    return str(cfg.dump())


def _files(folder: Path) -> Iterator[Path]:
    return iter(sorted(folder.iterdir())) if folder.is_dir() else iter(())


def lock_folder(folder: Path) -> None:
    """Lock a folder for this process, until `unlock_folder` or the end of the process.

    The file .psf-lock names host and process. The operating system drops the lock of a process that ends in any way, so
    the file of a dead process is taken over. File systems without locks are not protected.

    Raises:
        UserError: naming host and process, if another process holds the lock.
    """
    path = _lock_path(folder)
    if path in _locks:
        return
    while True:
        file = _open_lock(path, os.O_RDWR | os.O_CREAT)
        _acquire(file, folder)
        if path.exists() and os.path.samestat(os.fstat(file), path.lstat()):
            break
        os.close(file)  # the process before has just removed the file
    os.ftruncate(file, 0)
    os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    _locks[path] = file


@atexit.register
def unlock_all() -> None:
    """Remove this process's locks."""
    for path in list(_locks):
        unlock_folder(path.parent)


def unlock_folder(folder: Path) -> None:
    """Remove this process's lock; no effect if it has none."""
    path = _lock_path(folder)
    if (file := _locks.pop(path, None)) is not None:
        path.unlink(missing_ok=True)
        os.close(file)


def _check_lock(folder: Path) -> None:
    """Raise a UserError if another process has locked the folder; locks nothing."""
    path = _lock_path(folder)
    if path in _locks or not os.path.lexists(path):  # closing a second handle would drop this process's own lock
        return
    try:
        file = _open_lock(path, os.O_RDONLY)
    except FileNotFoundError:  # its process has just removed it
        return
    _acquire(file, folder, fcntl.LOCK_SH)  # processes that only look do not hold each other up
    os.close(file)


def _lock_path(folder: Path) -> Path:
    return Path(os.path.realpath(folder), LOCK_FILE)  # unlike Path.resolve, no error for a link to itself


def _open_lock(path: Path, flags: int) -> int:
    """Open a lock file; a UserError if the file of this name is a link, or anything else that psf has not written."""
    try:
        file = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except FileNotFoundError:
        raise
    except OSError as error:
        found = "is a link" if path.is_symlink() else f"cannot be opened ({error.strerror})"
        raise UserError(f"{path} {found}, expected the lock of a training: move it away") from error
    is_regular = stat.S_ISREG(os.fstat(file).st_mode)
    start = os.pread(file, 1000, 0) if is_regular else b""
    if not is_regular or (start and not LOCK_TEXT.fullmatch(start)):
        os.close(file)
        raise UserError(f"{path} is not the lock of a training: move it away")
    return file


def _acquire(file: int, folder: Path, kind: int = fcntl.LOCK_EX) -> None:
    """Lock an open lock file; close it and raise a UserError if another process has locked it."""
    try:
        fcntl.lockf(file, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        owner = os.read(file, 1000).decode(errors="replace").strip() or "another process"
        os.close(file)
        raise UserError(
            f"OUTPUT_DIR {folder}: {owner} trains there ({LOCK_FILE}); wait for it or end it, or name another "
            "OUTPUT_DIR"
        ) from None
    except OSError:  # no locks on this file system
        pass
