"""The published checkpoints of the paper's authors: their names, and their weights in psf's layout in the cache."""

from __future__ import annotations

import difflib
import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from torch import Tensor

import psf
from psf.atomic_files import cache_path, cache_root
from psf.checkpoint.conversion import convert_entries
from psf.checkpoint.reading import ZIP, check_kind, read_state_dict
from psf.checkpoint.saving import find_damage, write_checkpoint
from psf.data.files import check_regular, read_json, sha256_of
from psf.errors import UserError
from psf.model_zoo import get_config
from psf.model_zoo.download import download, forget_part

__all__ = ["ALIASES", "MIRROR", "PREFIX", "PUBLISHED", "Published", "address_of", "find", "prepared_weights"]

logger = logging.getLogger(__name__)

PREFIX = "psf://released/"
RELEASE = "https://github.com/zhiqi-li/Panoptic-SegFormer/releases/download/v1.0"
MIRROR = "PSF_WEIGHTS_URL"  # variable: another address in place of RELEASE


class Published(NamedTuple):
    """A checkpoint of the authors' release."""

    name: str
    file: str  # below RELEASE
    config: str  # of the same model, below configs/
    pq: float  # on COCO val2017, as the authors' repository has it; not measured by us

    @property
    def address(self) -> str:
        """For MODEL.WEIGHTS."""
        return f"{PREFIX}{self.name}"

    @property
    def source(self) -> Path:
        """The authors' file in the cache, downloaded or put there by hand."""
        return cache_root() / "released" / self.file

    @property
    def weights(self) -> Path:
        """The same weights in psf's layout."""
        return cache_root() / "released" / f"{self.name}.pth"


PUBLISHED = {
    name: Published(name, f"panoptic_segformer_{file}.pth", f"coco/released/psf_{name}.yaml", pq)
    for name, file, pq in (
        ("R50_12ep", "r50_1x", 48.0),
        ("R50_24ep", "r50_2x", 49.6),
        ("R101_24ep", "r101_2x", 50.6),
        ("PVTv2-B5_24ep", "pvtv2b5_2x", 55.6),
        ("Swin-L_24ep", "swinl_2x", 55.8),
    )
}
ALIASES = {"R50": "R50_24ep", "R101": "R101_24ep", "PVTv2-B5": "PVTv2-B5_24ep", "Swin-L": "Swin-L_24ep"}


class _Record(NamedTuple):
    """What a file was when it was first seen; kept next to it, as JSON. Later ones must be the same."""

    size: int  # bytes
    sha256: str
    converted_by: str  # version of psf that has written the weights


def find(name: str) -> Published:
    """A published checkpoint by any of the names that `psf.model_zoo.resolve` takes; a UserError if there is none."""
    forms = {alias: PUBLISHED[full] for alias, full in ALIASES.items()}
    for published in PUBLISHED.values():
        forms |= dict.fromkeys((published.name, published.config), published)
    folded = {form.lower(): published for form, published in forms.items()}
    wanted = name.lower().removeprefix(PREFIX)
    if wanted in folded:
        return folded[wanted]
    alike = [form for form in forms if form.lower() in difflib.get_close_matches(wanted, folded, 2)]
    hint = f"; did you mean {' or '.join(alike)}?" if alike else ""
    raise UserError(f"no published weights have the name {name!r}: expected one of {', '.join(PUBLISHED)}{hint}")


def address_of(published: Published) -> str:
    """Where a file is downloaded from: the authors' release, or the mirror in the variable PSF_WEIGHTS_URL."""
    if not (mirror := os.environ.get(MIRROR, "").strip()):
        return f"{RELEASE}/{published.file}"
    try:
        parts = urlsplit(mirror)
        is_plain = parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc
        is_plain = is_plain and not (parts.query or parts.fragment) and mirror.isascii() and " " not in mirror
        _ = parts.port  # a ValueError if it is no number
    except ValueError:
        is_plain = False
    if not is_plain:
        raise UserError(
            f"the variable {MIRROR} is not the address of a folder, without name and password: expected "
            "https://HOST/FOLDER or http://HOST/FOLDER"
        )
    return f"{mirror.rstrip('/')}/{published.file}"


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
