"""Rename the entries of a state dict by a literal table; each entry must match."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache

from torch import Tensor

from psf.errors import UserError

__all__ = ["count_matches", "is_match", "rename"]


def rename(
    state_dict: Mapping[str, Tensor],
    table: Mapping[str, str | tuple[str, ...]],
    dropped: Iterable[str],
    *,
    source: str,
) -> dict[str, Tensor]:
    """Rename each entry by the table.

    In a pattern "#" matches a number and "*" the rest of the name; the new name repeats what they matched. The first
    matching pattern counts. With several new names, the entry is split into equal parts along its second dimension.

    Args:
        state_dict: entries by their old names.
        table: pattern -> new name or names.
        dropped: patterns of entries that are dropped on purpose.
        source: name of the source, for the error message.

    Raises:
        UserError: if entries match neither `table` nor `dropped`, or two entries get the same name.
    """
    rules = [(_compiled(pattern), (names,) if isinstance(names, str) else names) for pattern, names in table.items()]
    unwanted = [_compiled(pattern) for pattern in dropped]
    renamed: dict[str, Tensor] = {}
    unknown = []
    for old, value in state_dict.items():
        if any(pattern.fullmatch(old) for pattern in unwanted):
            continue
        match, names = next(((m, names) for pattern, names in rules if (m := pattern.fullmatch(old))), (None, ()))
        if match is None:
            unknown.append(old)
            continue
        parts = value.chunk(len(names), dim=1) if len(names) > 1 else (value,)
        for name, part in zip(names, parts, strict=True):
            new = _filled(name, match)
            if new in renamed:
                raise UserError(f'{source}: "{old}" and another entry both mean "{new}"')
            renamed[new] = part.contiguous()
    if unknown:
        raise UserError(f"{source}: {len(unknown)} unknown entries: {', '.join(unknown[:10])}")
    return renamed


def is_match(name: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern, as in `rename`, matches the whole name."""
    return any(_compiled(pattern).fullmatch(name) for pattern in patterns)


def count_matches(names: Iterable[str], patterns: Iterable[str]) -> dict[str, int]:
    """Number of names that each pattern matches, without patterns that match none."""
    names = list(names)
    counts = {pattern: sum(is_match(name, [pattern]) for name in names) for pattern in patterns}
    return {pattern: count for pattern, count in counts.items() if count}


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(re.escape(pattern).replace(r"\#", r"(\d+)").replace(r"\*", r"(.*)"))


def _filled(name: str, match: re.Match[str]) -> str:
    found = iter(match.groups())
    return re.sub(r"[#*]", lambda _: next(found), name)
