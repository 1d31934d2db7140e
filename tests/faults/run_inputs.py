"""Readers of what a run starts from: configs, options, checkpoints, last_checkpoint."""

from __future__ import annotations

import io
import json
import pickle
import random
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from hypothesis import strategies as st

from psf import add_psf_config
from psf.checkpoint import newest_sound_checkpoint, write_checkpoint
from psf.checkpoint.saving import TAG
from psf.engine import Checkpointer, build_config
from psf.engine.config.files import merge_config_file
from tests.faults.mutations import CANARY, HOSTILE_VALUES, damage, hostile_pickle
from tests.faults.reader import Judge, Reader, by_bytes, by_strategy, read_all

__all__ = ["RUN_INPUTS"]


BASE_YAML = (
    "VERSION: 2\nMODEL: {META_ARCHITECTURE: PanopticSegFormer, PIXEL_MEAN: [1.0, 2.0, 3.0]}\nOUTPUT_DIR: ./out\n"
)
YAML_LINES = (
    *("_BASE_: base.yaml", "_BASE_: [base.yaml, base.yaml]", "_BASE_: input.yaml", "_BASE_: ../input.yaml"),
    *("_BASE_: /etc/passwd", "_BASE_: none.yaml", "_BASE_: .", "_BASE_: 3", "_BASE_: ['']", "_BASE_: ~/x.yaml"),
    *("SOLVER: {BASE_LR: 1e999}", "SOLVER:", "  MAX_ITER: 10", "  STEPS: (1, 2)", "  STEPS: [a]", "SEED: 0x10"),
    *("SEED: .nan", "SEED: 1e3", "VERSION: 1", "VERSION: two", "OUTPUT_DIR: 2024-01-01", "OUTPUT_DIR: !!binary aGk="),
    *(
        "DATASETS: {TRAIN: mine}",
        "MODEL: &a {WEIGHTS: *a}",
        "<<: {SEED: 1}",
        "? [a]",
        ": :",
        "\t- x",
        "- a",
        "---",
        "...",
    ),
    "OUTPUT_DIR: !!python/object/apply:os.system ['touch canary']",
    "OUTPUT_DIR: !!python/object/apply:builtins.open [canary, w]",
    "SEED: !!python/name:os.system",
    "MODEL: !!python/object/new:subprocess.Popen [[touch, canary]]",
    "!!python/module:canary",
    'SEED: !!python/object/apply:builtins.eval [\'open("canary", "w")\']',
    "MODEL: {a: &a [x, x], b: &b [*a, *a], c: &c [*b, *b, *b, *b], d: &d [*c, *c, *c, *c], e: [*d, *d, *d, *d]}",
    "MODEL: " + "[" * 3000,
    "MODEL: " + "{a: " * 500,
)


def prepare_configs() -> list[bytes]:
    Path("base.yaml").write_text(BASE_YAML)
    Path("derived.yaml").write_text("_BASE_: input.yaml\nSEED: 1\n")
    return [BASE_YAML.encode(), (BASE_YAML + "_BASE_: base.yaml\n").encode()]


def config_strategy(sound: list[bytes]) -> st.SearchStrategy[bytes]:
    scalar = st.one_of(st.text(max_size=6), st.sampled_from([repr(one)[:50] for one in HOSTILE_VALUES]))
    key = st.sampled_from(("SEED", "MODEL.WEIGHTS", "SOLVER", "OUTPUT_DIR", "INPUT", "DATASETS"))
    line = st.one_of(
        st.sampled_from(YAML_LINES), st.sampled_from(BASE_YAML.splitlines()), st.builds("{}: {}".format, key, scalar)
    )
    return st.lists(line, max_size=6).map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass"))


def new_config() -> CfgNode:
    cfg = get_cfg()
    add_psf_config(cfg)
    return cfg


DEFAULTS = new_config()


def read_config() -> None:
    """The input is the config and, in a second reading, the base of a sound one."""
    read_all(*(partial(merge_config_file, DEFAULTS.clone(), name) for name in ("input.yaml", "derived.yaml")))


def _keys(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield prefix + key
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{key}.")


def options_strategy(sound: list[bytes]) -> st.SearchStrategy[bytes]:
    names = sorted(key for key in _keys(DEFAULTS) if not key.startswith("MODEL.PSF.IMPORTS"))  # trusted by design
    key = st.one_of(st.sampled_from(names), st.sampled_from(names), st.text(max_size=8))
    literals = [
        *(repr(one)[:200] for one in HOSTILE_VALUES),
        "(1,)",
        "('a', 1)",
        "[" * 300,
        "1e999",
        "-1",
        "__import__('os')",
    ]
    word = st.one_of(st.sampled_from(literals), st.text(max_size=6), st.integers().map(str), st.floats().map(str))
    pairs = st.lists(st.tuples(key, word), min_size=1, max_size=2)
    return pairs.map(lambda words: json.dumps([word for pair in words for word in pair]).encode())


def read_options() -> None:
    try:
        words = json.loads(Path("words.json").read_bytes())
    except ValueError:
        words = None
    if not isinstance(words, list):  # damaged bytes: no words that a command line could have
        return
    build_config("base.yaml", [str(word) for word in words], warn=False)


def prepare_checkpoints() -> list[bytes]:
    model = torch.nn.Linear(3, 2)
    content = {"model": model.state_dict(), "iteration": 3, "trainer": {"iteration": 3}, "note": "x"}
    write_checkpoint(content, Path("model_0000003.pth"))
    sound = [Path("model_0000003.pth").read_bytes()]
    for is_zip in (True, False):
        file = io.BytesIO()
        torch.save(content, file, _use_new_zipfile_serialization=is_zip)
        sound.append(file.getvalue())
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    sound += [pickle.dumps({"model": arrays, "__author__": "x"}, protocol) for protocol in (2, 4, 5)]
    return sound


CHECKPOINTS = ("input.pth", "input.pkl", "input.pyth")


def hostile_checkpoints(sound: list[bytes], number: int, seed: int, judge: Judge) -> None:
    """Half are damaged; half have pickles that call functions: plain, in a zip, or after the header of an old file."""
    by_bytes(sound, number // 2, seed, judge)
    chance = random.Random(seed)
    [old] = [one for one in sound if one.startswith(b"\x80") and b"protocol_version" in one]
    header = old[: old.index(b"protocol_version") - 20]
    for _ in range(number - number // 2):
        content = hostile_pickle(chance, CANARY)
        match chance.randrange(4):
            case 0:
                file = io.BytesIO()
                with zipfile.ZipFile(file, "w") as archive:
                    archive.writestr("archive/data.pkl", content)
                    archive.writestr("archive/version", "3\n")
                    archive.writestr(chance.choice(("archive/data/0", "../canary", "/canary")), b"\0" * 8)
                content = file.getvalue()
            case 1:
                content = header + content
        judge(damage(content, chance) if chance.randrange(5) == 0 else content)


def read_checkpoint_file() -> None:
    read_all(*(partial(Checkpointer(torch.nn.Linear(3, 2)).load, name) for name in CHECKPOINTS))


def tag_strategy(sound: list[bytes]) -> st.SearchStrategy[bytes]:
    names = (
        "model_0000003.pth",
        "model_0000004.pth",
        "../model.pth",
        "/etc/passwd",
        "evil.pkl",
        "",
        "\0",
        ".",
        "a/b.pth",
    )
    text = st.one_of(st.sampled_from(names), st.text(max_size=12))
    return st.tuples(text, st.sampled_from(("", "\n", "\r\n", "\0", " "))).map(
        lambda two: "".join(two).encode("utf-8", "replace")
    )


def read_tag() -> None:
    """Whatever the tag says: the sound checkpoint is found, or one line says why not."""
    found = newest_sound_checkpoint(Path())
    if found is None or found.path.name != "model_0000003.pth":
        raise AssertionError(f"found {found and found.path}")


def prepare_tags() -> list[bytes]:
    prepare_checkpoints()
    Path("evil.pkl").write_bytes(hostile_pickle(random.Random(0), CANARY))
    return [b"model_0000003.pth"]


RUN_INPUTS = (
    Reader("configs: yaml and _BASE_", 50, ("input.yaml",), prepare_configs, by_strategy(config_strategy), read_config),
    Reader("configs: KEY VALUE", 30, ("words.json",), prepare_configs, by_strategy(options_strategy), read_options),
    Reader(
        "checkpoints: .pth, .pkl, .pyth",
        50,
        CHECKPOINTS,
        prepare_checkpoints,
        hostile_checkpoints,
        read_checkpoint_file,
    ),
    Reader("last_checkpoint", 20, (TAG,), prepare_tags, by_strategy(tag_strategy), read_tag),
)
