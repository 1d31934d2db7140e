"""Re-map heads from the classes of a checkpoint to the classes of a model, by class names."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tabulate import tabulate
from torch import Tensor

from psf.checkpoint.entries import ClassNames
from psf.checkpoint.name_table import is_match
from psf.checkpoint.reading import no_weight, wrong_entry
from psf.errors import escape_controls

__all__ = [
    "ClassChanges",
    "adapt_input_channels",
    "adapt_query_count",
    "adapted_weight",
    "changes_table",
    "compare_classes",
    "query_count_entry",
    "remap_classes",
    "stored_query_count",
]

# Parameters with a row for each class. The stuff classifier has none: each stuff query has one class.
ROWS = {
    "things": (
        "location_decoder.class_embed.#.*",
        "location_decoder.proposals.class_head.*",
        "thing_classifier.layers.#.*",
    ),
    "stuff": ("stuff_query_feat.weight", "stuff_query_pos.weight"),
}
LINE = 90  # characters of class names per line of the table


class ClassChanges(NamedTuple):
    """Mapping from the classes of a checkpoint to the classes of a model; for things, or for stuff."""

    found: tuple[str, ...]  # the checkpoint's
    wanted: tuple[str, ...]  # the model's
    sources: tuple[int | None, ...]  # row of each wanted class in the checkpoint

    @property
    def is_identity(self) -> bool:
        return self.sources == tuple(range(len(self.found)))

    @property
    def new(self) -> list[str]:
        """Classes of the model that are not in the checkpoint."""
        return [name for name, source in zip(self.wanted, self.sources, strict=True) if source is None]

    def groups(self) -> dict[str, list[str]]:
        """A table of the classes that are kept, re-mapped, new or dropped."""
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

    Names match if they differ only in case, "-", "_", spaces, or COCO's endings "-other" and "-merged". A thing class
    and a stuff class never match: the two kinds share no queries.
    """
    changes = {}
    for kind, old, new in zip(ClassNames._fields, found, wanted, strict=True):
        sources = tuple(range(len(old))) if old == new else _find(old, new)
        changes[kind] = ClassChanges(old, new, sources)
    return changes


def remap_classes(
    state_dict: Mapping[str, Tensor], model_state: Mapping[str, Tensor], changes: Mapping[str, ClassChanges]
) -> dict[str, Tensor]:
    """Move the rows of each class to the position that the class has in the model.

    Args:
        state_dict: the checkpoint's.
        model_state: the model's, whose rows the new classes keep.
        changes: of "things" and of "stuff", from `compare_classes`.

    Returns:
        All entries. An entry is unchanged if its number of rows differs from the number of names, or its rows have
        another size than the model's.
    """
    remapped = dict(state_dict)
    for kind, change in changes.items():
        for name in state_dict.keys() & model_state.keys():
            old, fresh = state_dict[name], model_state[name]
            if not is_match(name, ROWS[kind]) or old.ndim != fresh.ndim or old.shape[1:] != fresh.shape[1:]:
                continue
            if (len(old), len(fresh)) == (len(change.found), len(change.wanted)):
                remapped[name] = _pick_rows(old, fresh, change.sources)
    return remapped


def changes_table(changes: Mapping[str, ClassChanges]) -> str:
    """What happens to each class, by kind."""
    rows = [
        [kind, what, len(names), _list_names(names)]
        for kind, change in changes.items()
        for what, names in change.groups().items()
        if names
    ]
    return tabulate(rows, ["", "", "classes", ""], tablefmt="simple")


def _list_names(names: Sequence[str]) -> str:
    text = escape_controls(", ".join(names))
    return "\n".join(textwrap.wrap(text, LINE, break_on_hyphens=False))


def _find(old: Sequence[str], new: Sequence[str]) -> tuple[int | None, ...]:
    """The row of each new name among the old ones; an exact match comes first."""
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


ENTRY = "psf_num_thing_queries"  # in a checkpoint
QUERIES = ("location_decoder.query_feat.weight", "location_decoder.query_pos.weight")  # one row per query


def query_count_entry(num_thing_queries: int) -> dict[str, int]:
    """The checkpoint entry for the number of thing queries."""
    return {ENTRY: num_thing_queries}


def stored_query_count(checkpoint: Mapping[str, Any]) -> int | None:
    """Number of thing queries that a checkpoint was trained with: its entry, or the number of its learned queries.

    None if it has neither, as in the weights of a backbone.

    Raises:
        UserError: if its entry is no number.
    """
    if ENTRY in checkpoint:
        count = checkpoint[ENTRY]
        if type(count) is not int or count < 0:
            raise wrong_entry(ENTRY, count, "a whole number")
        return count
    weights = checkpoint.get("model")
    weights = weights if isinstance(weights, Mapping) else checkpoint
    shapes = [weights[name].shape for name in QUERIES if no_weight(weights.get(name)) is None]
    return next((int(shape[0]) for shape in shapes if shape), None)


def adapt_query_count(state_dict: dict[str, Tensor], model_state: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """Resize a checkpoint's thing queries to the model's number, in place.

    The first queries are kept, up to the smaller number: queries have no order. Further ones keep the model's values.

    Args:
        state_dict: the checkpoint's.
        model_state: the model's.

    Returns:
        The checkpoint's number and the model's, if they differ.
    """
    counts = None
    for name in QUERIES:
        if name not in state_dict or name not in model_state:
            continue
        found, wanted = state_dict[name], model_state[name]
        if found.shape[1:] == wanted.shape[1:] and len(found) != len(wanted):
            counts = (len(found), len(wanted))
            state_dict[name] = wanted.detach().to("cpu", copy=True)
            state_dict[name][: len(found)] = found[: len(wanted)]
    return counts


COLORS = 3


def adapt_input_channels(
    state_dict: dict[str, Tensor], model_state: Mapping[str, Tensor], *, is_suffix: bool = False
) -> dict[str, tuple[int, ...]]:
    """Adapt a checkpoint's first backbone convolution to the model's number of input channels, in place.

    This is the 4-D weight under "backbone." whose shape differs from the model's only in dimension 1, where the
    checkpoint has 3.

    Args:
        state_dict: the checkpoint's.
        model_state: the model's.
        is_suffix: names in the checkpoint may lack the prefix, as in Detectron2's heuristic matching.

    Returns:
        The model's name of each changed weight -> its former shape.
    """
    changes = {}
    for name, wanted in model_state.items():
        if not name.startswith("backbone.") or wanted.ndim != 4 or wanted.shape[1] == COLORS:
            continue
        source = _find_entry(state_dict, name, is_suffix)
        if source is not None and state_dict[source].shape == (len(wanted), COLORS, *wanted.shape[2:]):
            found = state_dict.pop(source)
            state_dict[name] = adapted_weight(found, wanted.shape[1])
            changes[name] = tuple(found.shape)
    return changes


def adapted_weight(weight: Tensor, num_channels: int) -> Tensor:
    """(O, 3, h, w) -> (O, C, h, w), by timm's rule.

    One channel gets the sum of the three, so a gray image gives the same output as before. More channels repeat the
    three in turn, times 3 / C, which keeps the scale of the output.
    """
    if num_channels == 1:
        return weight.sum(dim=1, keepdim=True)
    turns = -(-num_channels // COLORS)
    return weight.repeat(1, turns, 1, 1)[:, :num_channels] * (COLORS / num_channels)


def _find_entry(state_dict: Mapping[str, Tensor], name: str, is_suffix: bool) -> str | None:
    """The checkpoint's entry with this name, or the longest entry that the name ends with."""
    if name in state_dict or not is_suffix:
        return name if name in state_dict else None
    return max((key for key in state_dict if name.endswith(f".{key}")), key=len, default=None)
