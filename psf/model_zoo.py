"""The configs that come with psf, by name."""

from __future__ import annotations

import difflib
from pathlib import Path

from psf.errors import UserError

__all__ = ["get_config_file"]


def get_config_file(name: str) -> str:
    """Path of a config that comes with psf, whether psf is a wheel, an editable install or a checkout.

    Args:
        name: path below configs/, such as "coco/psf_R50_24ep.yaml" or "lazy/released.py".

    Raises:
        UserError: if there is no such config; the message names similar ones.
    """
    package = Path(__file__).resolve().parent
    shipped = package / "configs"  # in a wheel; otherwise configs/ is next to the package
    root = shipped if shipped.is_dir() else package.parent / "configs"
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.suffix in (".yaml", ".py"))
    if name not in names:
        alike = difflib.get_close_matches(name, names, cutoff=0.6)
        hint = f"did you mean {' or '.join(alike)}?" if alike else f"{root} contains {len(names)} configs"
        raise UserError(f"psf has no config {name!r}; {hint}")
    return str(root / name)
