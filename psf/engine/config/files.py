"""Read config files: YAML with plain values only, `_BASE_` included. Nothing in a file is executed.

Detectron2's `merge_from_file` runs the Python tags of YAML; psf's commands read configs with `merge_config_file`.
"""

from __future__ import annotations

import ast
import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from detectron2.config import CfgNode

from psf.config import leaves
from psf.data.files import local_path
from psf.errors import UserError

__all__ = [
    "PlainLoader",
    "merge_config_file",
    "merge_config_text",
    "merge_options",
    "stored_value",
    "value_of",
]

BASE = "_BASE_"
MAX_BYTES = 300_000  # 45 per class, and some kB; reading a megabyte of brackets would take a minute
MAX_VALUES = 100_000  # YAML aliases can make billions of values out of a few lines
MAX_BITS = 63  # of a whole number, as in PyTorch
MAX_SHOWN = 120  # characters of a value in a message
# Keys with lists of names: "one,two" is a list of two names. All other keys take commas as part of the text.
NAME_LISTS = (
    "DATASETS.TRAIN",
    "DATASETS.TEST",
    "MODEL.PSF.ACTIVATION_CHECKPOINTING",
    "MODEL.PSF.IMPORTS",
    "MODEL.PSF.IN_FEATURES",
    "MODEL.PSF.SWIN.FREEZE",
    "MODEL.PSF.TIMM.FREEZE",
)
# All lists of texts that may be empty, where the present value does not tell.
TEXT_LISTS = (*NAME_LISTS, "DATASETS.PSF_REGISTER", "MODEL.PSF.CLASSES")
EXPECTED = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}
# No path or name has these: NUL, and a half of a surrogate pair. Python makes the halves \udc80 to \udcff of the bytes
# of paths that are not in UTF-8.
_NO_TEXT = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")


class _ConfigFile(NamedTuple):
    """One file of a config, without its `_BASE_`."""

    path: str
    content: dict[str, Any]


def merge_config_file(cfg: CfgNode, path: str) -> None:
    """Merge a yaml and its `_BASE_` into a config, in place, as Detectron2's `merge_from_file` but without code.

    Args:
        cfg: with all keys that the file may have.
        path: of the yaml.

    Raises:
        UserError: naming file, line and tag if a file has a YAML tag; if a file is not a readable YAML file in UTF-8
            with keys and plain values; if a `_BASE_` is missing or refers to itself; if a key is unknown or
            has a value of another type.
    """
    for source, content in _read_files(path):
        _merge(cfg, content, source)


def merge_config_text(cfg: CfgNode, text: str, source: str, is_allowed: Callable[[str], bool]) -> None:
    """Merge the config in a model file into a config, in place, as `merge_config_file`, but without any `_BASE_`.

    Args:
        cfg: with all keys that the text may have.
        text: YAML.
        source: where the text is from, for messages.
        is_allowed: whether the text may have a dotted key.

    Raises:
        UserError: as `merge_config_file`; if the text is too long, or has a key that is not allowed.
    """
    if len(text) > MAX_BYTES:
        raise UserError(f"{source} has {len(text)} characters: expected a config in YAML")
    content = _parse(text, source)
    for key, _ in _read_leaves(content, cfg, source):
        if not is_allowed(key):
            raise UserError(f"{source} has the key {_short(key)}: expected only keys that describe the model")
    _merge(cfg, content, source)


def _merge(cfg: CfgNode, content: dict[str, Any], source: str) -> None:
    version = content.pop("VERSION", cfg.VERSION)
    if version != cfg.VERSION:
        raise UserError(
            f"{source}: VERSION is {version!r}, expected {cfg.VERSION}: older configs have other keys; rename the "
            f"keys, and set VERSION to {cfg.VERSION}"
        )
    for key, value in _read_leaves(content, cfg, source):
        _set(cfg, key, value, source)


def merge_options(cfg: CfgNode, options: list[str]) -> None:
    """Merge KEY VALUE pairs of a command line into a config, in place.

    Raises:
        UserError: if a key is unknown (the message has the nearest known one), has no value or one of another type.
    """
    if len(options) % 2:
        raise UserError(f"options come as KEY VALUE pairs, found {len(options)} words: {' '.join(options)}")
    for key in options[::2]:
        _check_key(cfg, key, "the command line")
    for key, value in zip(options[::2], options[1::2], strict=True):
        _set(cfg, key, value, "the command line")


def stored_value(path: str, key: str) -> Any:
    """The value of a key in a yaml or its `_BASE_`; None if neither has it.

    Raises:
        UserError: as `merge_config_file`, if a file cannot be read.
    """
    found: Any = None
    for _, content in _read_files(path):
        node: Any = content
        for part in key.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        found = found if node is None else node
    return found


def value_of(cfg: CfgNode, key: str) -> Any:
    """The value of a dotted key that the config has."""
    value: Any = cfg
    for part in key.split("."):
        value = value[part]
    return value


def _read_files(path: str, referring: tuple[str, ...] = ()) -> Iterator[_ConfigFile]:
    """The files of a config, bases first; later files override earlier ones. `referring`: files that lead here."""
    content = _read(path, referring)
    bases = content.pop(BASE, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(base and isinstance(base, str) for base in bases):
        raise UserError(f"{path}: {BASE} is {bases!r}: expected the path of a yaml, or a list of paths")
    chain = (*referring, path)
    for base in bases:
        if found := _NO_TEXT.search(base):
            raise UserError(f"{path}: {BASE} is {base!a}: the character {found[0]!a} is not allowed in a path")
        base = os.path.expanduser(base)
        if "://" not in base:
            base = os.path.normpath(os.path.join(os.path.dirname(path), base))
        if any(os.path.realpath(base) == os.path.realpath(one) for one in chain):
            raise UserError(f"{path}: {BASE} leads back to {base}: {' -> '.join((*chain, base))}; remove one of them")
        yield from _read_files(base, chain)
    yield _ConfigFile(path, content)


def _read(path: str, referring: tuple[str, ...]) -> dict[str, Any]:
    where = f"{referring[-1]}: its {BASE} {path}" if referring else path
    try:
        file = Path(local_path(path))
        if not file.is_file():
            raise UserError(f"{where} {'is a folder' if file.is_dir() else 'does not exist'}; expected a yaml")
        if file.stat().st_size > MAX_BYTES:
            raise UserError(f"{where} has {file.stat().st_size} bytes: expected a config in YAML")
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not in UTF-8 (byte {error.start}): save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{where} cannot be read ({error.strerror or error})") from error
    return _parse(text, where)


def _parse(text: str, where: str) -> dict[str, Any]:
    """The content of a YAML text with plain values; messages begin with `where`."""
    try:
        content = yaml.load(text, PlainLoader)
        num_values = _count(content, {})
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{where}{line}: {_explain(error)}") from error
    except (yaml.YAMLError, RecursionError, OverflowError, TypeError) as error:
        text = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise UserError(f"{where}: not a valid YAML file ({text})") from error
    except ValueError as error:
        raise UserError(f"{where}: has a value that YAML cannot read ({error})") from error
    if content is None:
        raise UserError(f"{where} is empty: expected keys such as MODEL")
    if not isinstance(content, dict):
        raise UserError(f"{where} is a {type(content).__name__}: expected keys such as MODEL, each with its value")
    if num_values > MAX_VALUES:
        raise UserError(f"{where} has more than {MAX_VALUES} values, made by YAML aliases: expected a config")
    return content


class PlainLoader(yaml.SafeLoader):
    """SafeLoader that names refused tags, and refuses huge numbers and a key that is given twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        # YAML would drop the first of two values.
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else []:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"the key {key.value} is given twice: join the two", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        content: dict[Any, Any] = super().construct_mapping(node, deep)
        return content

    def flatten_mapping(self, node: Any) -> None:
        """Join the mappings of a merge key `<<`; a few nested ones in a small file could give billions of entries."""
        super().flatten_mapping(node)
        if len(node.value) > MAX_VALUES:
            problem = f"merge keys (<<) give a mapping more than {MAX_VALUES:,} entries"
            raise yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)

    def construct_yaml_int(self, node: Any) -> int:
        value: int = super().construct_yaml_int(node)
        if too_large := _too_large(value):
            problem = f"a whole number of {too_large} bits: expected at most {MAX_BITS}"
            raise yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)
        return value

    def refuse(self, node: yaml.Node) -> None:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        raise yaml.constructor.ConstructorError(
            problem=f"the tag {tag} is refused, and nothing was executed: a config has only plain values",
            problem_mark=node.start_mark,
        )


PlainLoader.add_constructor(None, PlainLoader.refuse)
PlainLoader.add_constructor("tag:yaml.org,2002:int", PlainLoader.construct_yaml_int)


def _explain(error: yaml.MarkedYAMLError) -> str:
    if isinstance(error, yaml.constructor.ConstructorError):
        return str(error.problem)
    hint = "; indent with spaces, not with tabs" if "'\\t'" in str(error.problem) else ""
    context = f" {error.context}" if error.context else ""
    return f"not valid YAML ({error.problem}{context}){hint}"


def _count(value: Any, counts: dict[int, int]) -> int:
    """Number of values, aliases counted each time. `counts`: of the lists and dicts that are counted already, by id."""
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in counts:
        counts[id(value)] = MAX_VALUES + 1  # found again inside of itself
        inner = value.values() if isinstance(value, dict) else value
        counts[id(value)] = 1 + sum(_count(one, counts) for one in inner)
    return counts[id(value)]


def _read_leaves(content: Mapping[Any, Any], node: CfgNode, source: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a file, checked against the nodes of the config."""
    for name, value in content.items():
        key = f"{prefix}{name}"
        known = node.get(name)
        if isinstance(known, CfgNode) and isinstance(value, Mapping):
            yield from _read_leaves(value, known, source, f"{key}.")
        elif isinstance(known, CfgNode):
            raise UserError(
                f"{source}: {key} is {_short(value)}: expected keys below it, such as {key}.{next(iter(known))}"
            )
        elif isinstance(value, Mapping) and name in node:
            raise UserError(f"{source}: {key} has keys below it: expected a value such as {known!r}")
        else:
            yield key, value


def _check_key(cfg: CfgNode, key: str, source: str) -> Any:
    """The present value of a dotted key; a UserError if the config has no such key, or keys below it."""
    node: Any = cfg
    for part in key.split("."):
        node = node.get(part, _MISSING) if isinstance(node, CfgNode) else _MISSING
    if isinstance(node, CfgNode):
        raise UserError(f"{key} in {source} has keys below it: expected one of them, such as {key}.{next(iter(node))}")
    if node is not _MISSING:
        return node
    near = difflib.get_close_matches(key, [known for known, _ in leaves(cfg)], n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    if key.startswith("-"):
        hint = "; flags come before the KEY VALUE pairs"
    raise UserError(f"unknown config key {key!r} in {source}{hint}")


_MISSING = object()


def _set(cfg: CfgNode, key: str, text: Any, source: str) -> None:
    """Set a key to a value of a file or a command line; a single value for a list is a list with this value."""
    before = _check_key(cfg, key, source)
    value = _literal(text)
    for one in (value, *value) if isinstance(value, (list, tuple)) else [value]:
        if isinstance(one, str) and (found := _NO_TEXT.search(one)):
            raise UserError(f"{key} in {source} is {_short(value)}: the character {found[0]!a} is not allowed")
    if not isinstance(before, str) and (too_large := _too_large(value)):
        raise UserError(f"{key} in {source} has a whole number of {too_large} bits: expected at most {MAX_BITS}")
    if isinstance(before, (list, tuple)) and isinstance(value, (str, int, float)):
        value = value.split(",") if isinstance(value, str) and key in NAME_LISTS else [value]
    if isinstance(before, float) and type(value) is int:
        value = float(value)
    if isinstance(before, str) and isinstance(text, str) and isinstance(value, (int, float)):
        value = text  # OUTPUT_DIR 2024
    is_sequence = isinstance(before, (list, tuple)) and isinstance(value, (list, tuple))
    if before is not None and not is_sequence and type(value) is not type(before):
        expected = EXPECTED.get(type(before), f"a list such as {before!r}")
        raise UserError(f"{key} in {source} is {_short(value)}: expected {expected}")
    if is_sequence:
        kinds = {"text"} if key in TEXT_LISTS else {_kind(one) for one in before}
        if kinds in ({"number"}, {"text"}) and not {_kind(one) for one in value} <= kinds:
            example = f", such as {before!r}" if before else ""
            raise UserError(f"{key} in {source} is {_short(value)}: expected {kinds.pop()}s{example}")
    parent, _, leaf = key.rpartition(".")
    node = value_of(cfg, parent) if parent else cfg
    node[leaf] = type(before)(value) if is_sequence else value


def _literal(value: Any) -> Any:
    """A text that is a Python literal, such as "(640, 800)" or "1e-4", becomes its value, as in yacs."""
    if not isinstance(value, str) or len(value) > MAX_BYTES:
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return value


def _too_large(value: Any) -> int:
    """Bits of a whole number that neither floats nor PyTorch can take; 0 if there is none in the value."""
    if isinstance(value, (list, tuple, set)):
        return max(map(_too_large, value), default=0)
    if isinstance(value, dict):
        return max(map(_too_large, (*value, *value.values())), default=0)
    bits = value.bit_length() if isinstance(value, int) else 0
    return bits if bits > MAX_BITS else 0


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    return "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else "other"
