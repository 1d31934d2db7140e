"""Heads that a model learned for one set of classes -> heads for another, by the names of the classes."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tabulate import tabulate
from torch import Tensor

from psf.checkpoint.class_names import ClassNames
from psf.checkpoint.name_table import is_match

__all__ = ["ClassChanges", "changes_table", "compare_classes", "remap_classes"]

# Parameters with a row for each class. The stuff classifier has none: each stuff query knows its own class alone.
ROWS = {
    "things": (
        "location_decoder.class_heads.#.*",
        "location_decoder.proposals.class_head.*",
        "thing_classifier.layers.#.*",
    ),
    "stuff": ("stuff_content.weight", "stuff_position.weight"),
}
LINE = 90  # characters of class names in a line of the table


class ClassChanges(NamedTuple):
    """How the classes of a model come from those of a checkpoint; for things, or for stuff."""

    found: tuple[str, ...]  # the checkpoint's
    wanted: tuple[str, ...]  # the model's
    sources: tuple[int | None, ...]  # of each wanted class, its row in the checkpoint

    @property
    def is_identity(self) -> bool:
        return self.sources == tuple(range(len(self.found)))

    @property
    def new(self) -> list[str]:
        """Classes of the model that the checkpoint does not know."""
        return [name for name, source in zip(self.wanted, self.sources, strict=True) if source is None]

    def groups(self) -> dict[str, list[str]]:
        """What happens to the classes: kept, re-mapped, new, dropped."""
        pairs = list(enumerate(self.sources))
        return {
            "kept": [self.wanted[row] for row, source in pairs if source == row],
            "re-mapped": [
                f"{self.wanted[row]} ({source} -> {row})" for row, source in pairs if source not in (None, row)
            ],
            "new": self.new,
            "dropped": [name for row, name in enumerate(self.found) if row not in self.sources],
        }


def compare_classes(found: ClassNames, wanted: ClassNames) -> dict[str, ClassChanges]:
    """Changes of "things" and of "stuff".

    Names are the same if they differ in case, "-", "_" and spaces alone, or in COCO's endings "-other" and
    "-merged". A class that is a thing here and stuff there is another class: the two kinds share no queries.
    """
    changes = {}
    for kind, old, new in zip(ClassNames._fields, found, wanted, strict=True):
        sources = tuple(range(len(old))) if old == new else _find(old, new)
        changes[kind] = ClassChanges(old, new, sources)
    return changes


def remap_classes(
    state_dict: Mapping[str, Tensor], model_state: Mapping[str, Tensor], changes: Mapping[str, ClassChanges]
) -> dict[str, Tensor]:
    """The checkpoint's entries with the rows of each class where the model has that class.

    Args:
        state_dict: the checkpoint's.
        model_state: the model's, whose rows the new classes keep.
        changes: of "things" and of "stuff", as `compare_classes` gives them.

    Returns:
        All entries. Those that have not as many rows as there are names, or whose rows are of another size than the
        model's, are left as they are.
    """
    remapped = dict(state_dict)
    for kind, change in changes.items():
        for name in state_dict.keys() & model_state.keys():
            old, fresh = state_dict[name], model_state[name]
            if not is_match(name, ROWS[kind]) or old.shape[1:] != fresh.shape[1:]:
                continue
            if (len(old), len(fresh)) == (len(change.found), len(change.wanted)):
                remapped[name] = _pick_rows(old, fresh, change.sources)
    return remapped


def changes_table(changes: Mapping[str, ClassChanges]) -> str:
    """What happens to each class, by kind."""
    rows = [
        [kind, what, len(names), "\n".join(textwrap.wrap(", ".join(names), LINE, break_on_hyphens=False))]
        for kind, change in changes.items()
        for what, names in change.groups().items()
        if names
    ]
    return tabulate(rows, ["", "", "classes", ""], tablefmt="simple")


def _find(old: Sequence[str], new: Sequence[str]) -> tuple[int | None, ...]:
    """The row of each new name among the old ones: of one that is the same to the letter, if there is one."""
    rows = list(reversed(list(enumerate(old))))
    exact, plain = {name: row for row, name in rows}, {_plain(name): row for row, name in rows}
    return tuple(exact.get(name, plain.get(_plain(name))) for name in new)


def _pick_rows(old: Tensor, fresh: Tensor, sources: Sequence[int | None]) -> Tensor:
    picked = fresh.detach().to("cpu", copy=True)
    for row, source in enumerate(sources):
        if source is not None:
            picked[row] = old[source]
    return picked


def _plain(name: str) -> str:
    words = re.sub(r"[\s_-]+", " ", name).strip().casefold()
    return re.sub("( other)?( merged)?$", "", words)
