"""Make damaged and hostile inputs from sound ones."""

from __future__ import annotations

import json
import math
import pickle
import random
import struct
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

__all__ = ["CANARY", "HOSTILE_VALUES", "damage", "edited_json", "hostile_pickle"]

CANARY = "canary"  # a file that only executed code writes
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def damage(content: bytes, random: random.Random) -> bytes:
    """A copy with one to four random changes of its bytes."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 4))):
        start = random.randrange(len(data) + 1)
        length = min(random.choice((1, 2, 4, 16, 256)), len(data) - start)
        match random.randrange(8):
            case 0:
                del data[start:]
            case 1:
                del data[start : start + length]
            case 2:
                data[start:start] = random.randbytes(length)
            case 3:
                data[start:start] = data[start : start + length] * random.choice((1, 2, 100))
            case 4:
                data[start : start + length] = random.randbytes(length)
            case 5:
                order, kind = random.choice("<>"), random.choice("BHI")
                size = struct.calcsize(kind)
                number = random.choice(INTERESTING) & (256**size - 1)
                data[start : start + size] = struct.pack(order + kind, number)
            case _ if start < len(data):
                data[start] ^= 1 << random.randrange(8)
    return bytes(data)


DEEP = "<deep>"  # becomes lists in lists
HOSTILE_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 0.5, 1e308, math.nan, math.inf, 2**31, 2**63, -(2**63), 2**70, 10**400),
    *("", "0", "\0", "\x1b[2J", "a\nb", "\ud800", "é" * 300, "x" * 10_000, "../../x", "..\\..\\x", "/etc/passwd"),
    *("C:\\x", "C:x", "//host/x", "~/x", ".", "..", "a/", "CON", "0.png", "file:///etc/passwd", "%s%n", DEEP),
    *(
        [],
        {},
        [[]],
        [{}],
        [None],
        {"id": 1},
        [1, 2, 3],
        [[0, 0, 1, 1]],
        ["a"],
        [1e9] * 6,
        {"counts": "0", "size": [1, 1]},
    ),
]


def _nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of each value in a tree, at any depth."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield tree, key
        yield from _nodes(tree[key])


@st.composite
def edited_json(draw: st.DrawFn, trees: list[Any]) -> bytes:
    """One of the trees, as JSON, with one to three values that are replaced, removed, repeated or moved."""
    tree = json.loads(json.dumps(draw(st.sampled_from(trees))))
    anything = st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
        max_leaves=6,
    )
    for _ in range(draw(st.integers(1, 3))):
        nodes = [(None, None), *_nodes(tree)]
        parent, key = nodes[draw(st.integers(0, len(nodes) - 1))]
        value = deepcopy(draw(st.one_of(st.sampled_from(HOSTILE_VALUES), anything)))
        if parent is None:
            tree = value if draw(st.integers(0, 9)) == 0 else tree
            continue
        match draw(st.integers(0, 5)):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, list):
                parent.append(parent[key])
            case 2 if isinstance(parent, dict):
                name = draw(st.one_of(st.sampled_from(sorted(parent)), st.text(max_size=4)))
                parent[name] = parent.pop(key)
            case 3:
                parent[key] = [parent[key]]
            case _:
                parent[key] = value
    text = json.dumps(tree, ensure_ascii=draw(st.booleans()))
    text = text.replace(f'"{DEEP}"', "[" * 100_000 + draw(st.sampled_from(("", "]" * 100_000))))
    return text.encode(draw(st.sampled_from(("utf-8", "utf-8", "utf-8-sig", "utf-16"))), "surrogatepass")


GLOBALS = (
    *("os system", "posix system", "builtins exec", "builtins eval", "builtins getattr", "builtins __import__"),
    *("subprocess Popen", "subprocess check_output", "shutil rmtree", "pathlib Path", "runpy run_path", "io open"),
    *("builtins open", "importlib import_module", "operator attrgetter", "functools partial", "torch load"),
    *("torch.serialization load", "numpy load", "numpy.core.multiarray _reconstruct", "numpy.core.multiarray scalar"),
    *("numpy._core.multiarray _reconstruct", "numpy ndarray", "numpy dtype", "numpy._core.numeric _frombuffer"),
    *("collections OrderedDict", "_codecs encode", "torch._utils _rebuild_tensor_v2", "torch FloatStorage"),
    *(
        "torch._utils _rebuild_parameter",
        "torch.storage _load_from_bytes",
        "datetime datetime",
        "copyreg _reconstructor",
    ),
)


def hostile_pickle(random: random.Random, canary: str) -> bytes:
    """A pickle of random operations that look up functions and classes, and call them, if the reader lets them."""
    arguments = (
        f"touch {canary}",
        f"open({canary!r}, 'w')",
        canary,
        "latin1",
        0,
        1,
        -1,
        2**40,
        b"\0" * 16,
        "O8",
        "f8",
        None,
        (),
        (1,),
        {},
        [1.0],
    )
    parts = [b"\x80", bytes([random.choice((2, 2, 3, 4, 5))])]
    for _ in range(random.choice((1, 1, 2, 3))):
        module, name = random.choice(GLOBALS).split()
        look_up = random.randrange(3)
        values = [pickle.dumps(random.choice(arguments), 2)[2:-1] for _ in range(random.choice((0, 1, 1, 2, 3)))]
        inner = b"(" + b"".join(values) + b"t"  # a tuple
        if look_up == 0:
            parts.append(f"c{module}\n{name}\n".encode() + inner + random.choice((b"R", b"\x81", b"R", b"b")))
        elif look_up == 1:
            both = b"".join(b"X" + struct.pack("<I", len(one)) + one.encode() for one in (module, name))
            parts.append(both + b"\x93" + inner + b"R")
        else:
            parts.append(b"(" + b"".join(values) + f"i{module}\n{name}\n".encode())
        parts.append(random.choice((b"", b"", b"0", b"}b", b"Nb", inner + b"b", b"q\x00", b"Q")))
    weights = pickle.dumps({"model": {"weight": [1.0, 2.0]}}, 2)[2:-1]
    parts.append(random.choice((b"", b"0" + weights, b"\x86", b"}X\x01\x00\x00\x00a" + weights + b"s")))
    return b"".join(parts) + b"."
