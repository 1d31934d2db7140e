"""The published checkpoints of the paper's authors: names, addresses, and places in the cache. Imports no torch."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from psf.atomic_files import cache_root
from psf.errors import UserError

__all__ = ["ALIASES", "MIRROR", "PREFIX", "PUBLISHED", "Published", "address_of", "find"]

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


def find(name: str) -> Published:
    """A published checkpoint by any of the names that `psf.model_zoo.resolve` takes; a UserError if there is none."""
    forms = {alias: PUBLISHED[full] for alias, full in ALIASES.items()}
    for published in PUBLISHED.values():
        forms |= dict.fromkeys((published.name, published.config), published)
    folded = {form.lower(): published for form, published in forms.items()}
    given = name.lower().removeprefix(PREFIX)
    if given in folded:
        return folded[given]
    alike = [form for form in forms if form.lower() in difflib.get_close_matches(given, folded, 2)]
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
