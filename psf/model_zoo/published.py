"""The weights of published checkpoints, downloaded and converted to psf's layout in the cache."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

import psf
from psf.atomic_files import cache_path
from psf.checkpoint.conversion import convert_entries
from psf.checkpoint.reading import ZIP, check_kind, read_state_dict
from psf.checkpoint.saving import find_damage, write_checkpoint
from psf.data.files import check_regular, read_json, sha256_of
from psf.errors import UserError
from psf.model_zoo import get_config
from psf.model_zoo.download import download, forget_part
from psf.model_zoo.names import MIRROR, Published, address_of

__all__ = ["prepared_weights"]

logger = logging.getLogger(__name__)


class _Record(NamedTuple):
    """What a file was when it was first seen; kept next to it, as JSON. Later ones must be the same."""

    size: int  # bytes
    sha256: str
    converted_by: str  # version of psf that has written the weights


def prepared_weights(published: Published) -> Path:
    """Path of the weights in psf's layout; they are downloaded and converted if the cache does not have them.

    Several processes may call it at the same time: one of them works, and the others wait.

    Raises:
        UserError: as `psf.model_zoo.resolve`; if a file in the cache has changed since it was first seen.
    """
    if not _is_ready(published):
        with _lock(published):
            if not _is_ready(published):
                _prepare(published)
    return published.weights


def _is_ready(published: Published) -> bool:
    """Whether the cache has sound weights of this version of psf, from the file that was first seen."""
    record, source, weights = _read_record(published), published.source, published.weights
    if record is None or record.converted_by != psf.__version__ or not weights.is_file():
        return False
    if source.is_file() and (
        source.stat().st_size != record.size or source.stat().st_mtime_ns > weights.stat().st_mtime_ns
    ):
        _check_same(source, record, published)
    if damage := find_damage(weights):
        logger.warning("%s: %s; converting again", weights, damage)
        return False
    return True


def _prepare(published: Published) -> None:
    """Fill the cache."""
    source, record = published.source, _read_record(published)
    check_regular(source)
    entries = _read(source, record, published) if source.exists() else _fetch(published, record)
    try:
        content, conversion = convert_entries(entries, get_config(published.config), str(source))
        if conversion.is_backbone:
            raise UserError(f"{source} is an ImageNet backbone, expected a released Panoptic SegFormer")
    except UserError as error:
        raise UserError(f"{error}; delete the file to download it again") from error
    with cache_path(published.weights) as draft:
        write_checkpoint(content, draft)
    new = _Record(source.stat().st_size, sha256_of(source), psf.__version__)
    with cache_path(_record_path(published)) as draft:
        draft.write_text(json.dumps(new._asdict()), encoding="utf-8")
    logger.info("%s converted to %s", source, published.weights)


def _fetch(published: Published, record: _Record | None) -> dict[str, Tensor]:
    """Download the authors' file; it gets its name if it is a checkpoint, and the one that was first seen."""
    url, source = address_of(published), published.source
    part = source.with_name(f"{source.name}.part")
    way_out = f"check the network, name a mirror in the variable {MIRROR}, or put the file at {source}"
    download(url, part, way_out)
    try:
        entries = _read(part, record, published)
    except UserError as error:
        forget_part(part)
        text = str(error).removeprefix(f"{part}: ")
        raise UserError(f"{url}: {text}; what has arrived is deleted; another way: put the file at {source}") from error
    os.replace(part, source)
    forget_part(part)
    return entries


def _read(path: Path, record: _Record | None, published: Published) -> dict[str, Tensor]:
    """The weights in a file of the authors' layout, after checks of its bytes."""
    if record is not None:
        _check_same(path, record, published)
    if check_kind(path).startswith(ZIP) and (damage := find_damage(path)):
        raise UserError(f"{path}: {damage}")
    return read_state_dict(path)


def _check_same(path: Path, record: _Record, published: Published) -> None:
    """Raise a UserError if a file is not the one that was first seen."""
    size = path.stat().st_size
    digest = sha256_of(path) if size == record.size else ""
    if digest == record.sha256:
        return
    found = f"SHA-256 {digest}, expected {record.sha256}" if digest else f"{size:,} bytes, expected {record.size:,}"
    raise UserError(
        f"{path}: not the file that was first seen here ({found}); restore it, or delete {_record_path(published)} to "
        "accept the new one"
    )


def _record_path(published: Published) -> Path:
    return published.source.with_name(f"{published.file}.json")


def _read_record(published: Published) -> _Record | None:
    """None if the file has not been seen yet."""
    path = _record_path(published)
    if not path.exists():
        return None
    content = read_json(path)
    try:
        record = _Record(**content)
        if type(record.size) is int and isinstance(record.sha256, str) and isinstance(record.converted_by, str):
            return record
    except TypeError:
        pass
    raise UserError(f"{path} is not psf's record of {published.file} ({', '.join(_Record._fields)}): delete it")


@contextmanager
def _lock(published: Published) -> Iterator[None]:
    """Let one process or thread at a time fill the cache; the lock ends with its process, however that ends."""
    path = published.source.with_name(f".{published.file}.lock")
    check_regular(path, links=False)
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.open("ab"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("another process prepares %s: waiting for it", published.name)
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise UserError(
                f"cannot lock {path} ({error.strerror or error}); set the variable PSF_CACHE to a writable folder"
            ) from error
        yield
