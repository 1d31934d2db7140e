"""The folder for what psf makes once and reads again: PSF_CACHE, by default psf/ in the user's cache folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["cache_draft", "cache_root"]


def cache_root() -> Path:
    """$PSF_CACHE, else psf/ in the user's cache folder. Nothing is created."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "psf"
    return Path(os.environ.get("PSF_CACHE") or default).expanduser().absolute()


@contextmanager
def cache_draft(target: Path) -> Iterator[Path]:
    """Where to write a file or a folder that is to be at `target`: it appears there whole, or not at all.

    Processes may race for it: each has a draft of its own. The first folder stays, the last file.

    Raises:
        ValueError: naming PSF_CACHE, if it cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
            draft = Path(temporary) / target.name
            yield draft
            try:
                os.replace(draft, target)
            except OSError:
                if not target.is_dir():  # else another process was first, with the same content
                    raise
    except OSError as error:
        raise ValueError(
            f"cannot write {target} ({error}); set the variable PSF_CACHE to a folder that can be written"
        ) from error
