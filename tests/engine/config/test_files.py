"""Config files of strangers: plain values are read, everything else is refused in one line, and nothing is executed."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

from psf.config import add_psf_config
from psf.engine.config.files import merge_config_file, merge_options, stored_value
from psf.errors import UserError
from psf.model_zoo import find_config_file


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_psf_config(cfg)
    return cfg


def written(folder: Path, content: str | bytes, name: str = "config.yaml") -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir", "!!python/object/new:os.mkdir"])
@pytest.mark.parametrize("in_base", [False, True])
def test_code_is_refused(cfg: CfgNode, tmp_path: Path, tag: str, in_base: bool) -> None:
    path = written(tmp_path, f"MODEL:\n  DEVICE: cpu\nOUTPUT_DIR: {tag} ['{tmp_path / 'executed'}']\n", "evil.yaml")
    if in_base:
        path = written(tmp_path, "_BASE_: evil.yaml\n")
    with pytest.raises(UserError, match=rf"evil\.yaml, line 3: the tag {tag} is refused, and nothing was executed"):
        merge_config_file(cfg, path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("tag", ["!!python/name:os.system", "!!python/module:os", "!own", "!!python/tuple"])
def test_other_tags_are_refused(cfg: CfgNode, tmp_path: Path, tag: str) -> None:
    with pytest.raises(UserError, match=rf"line 1: the tag {tag} is refused"):
        merge_config_file(cfg, written(tmp_path, f"OUTPUT_DIR: {tag} [1]\n"))


def test_values_and_bases(cfg: CfgNode, tmp_path: Path) -> None:
    """Later files override earlier ones; a single value is a list of one, and texts are Python literals as in yacs."""
    written(tmp_path, "SOLVER:\n  MAX_ITER: 3\n  STEPS: (1, 2)\nDATASETS:\n  TRAIN: one,two\n", "a.yaml")
    written(tmp_path, "SOLVER:\n  MAX_ITER: 4\n  BASE_LR: 1e-3\n", "b.yaml")
    own = "\ufeff_BASE_: [a.yaml, b.yaml]\nVERSION: 2\nSOLVER:\n  WEIGHT_DECAY: 1\nOUTPUT_DIR: '2024'\n"
    merge_config_file(cfg, path := written(tmp_path, own + "DATASETS:\n  TEST: ('three')\n"))
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.BASE_LR) == (4, (1, 2), 0.001)
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.OUTPUT_DIR) == (("one", "two"), ("three",), "2024")
    assert type(cfg.SOLVER.WEIGHT_DECAY) is float
    assert stored_value(path, "SOLVER.MAX_ITER") == 4 and stored_value(path, "SOLVER.MAX_ITER.X") is None


def test_merge_keys_are_limited(cfg: CfgNode, tmp_path: Path) -> None:
    """Ten mappings, each of which joins the one before ten times, would have a billion entries."""
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 10)]
    with pytest.raises(UserError, match=r"merge keys \(<<\) give a mapping more than 100,000 entries"):
        merge_config_file(cfg, written(tmp_path, "\n".join(lines)))
    merge_config_file(cfg, path := written(tmp_path, "INPUT: {<<: {MIN_SIZE_TEST: 7}, MAX_SIZE_TEST: 9}\n"))
    assert stored_value(path, "INPUT.MIN_SIZE_TEST") == 7 and cfg.INPUT.MAX_SIZE_TEST == 9


def test_same_as_detectron2(cfg: CfgNode) -> None:
    path = find_config_file("coco/released/psf_Swin-L_24ep.yaml")
    own = cfg.clone()
    cfg.merge_from_file(path)
    merge_config_file(own, path)
    assert own.dump() == cfg.dump()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty: expected keys"),
        ("- 1\n", "is a list: expected keys"),
        ("MODEL: 3\n", r"MODEL is 3: expected keys below it, such as MODEL\."),
        ("MODEL:\n", "MODEL is None: expected keys below it"),
        ("SOLVER:\n  MAX_ITER: {A: 1}\n", r"SOLVER\.MAX_ITER has keys below it"),
        ("SOLVER:\n  MAX_ITER:\n", r"SOLVER\.MAX_ITER in .* is None: expected a whole number"),
        ("SOLVER:\n  MAX_ITR: 1\n", r"unknown config key 'SOLVER\.MAX_ITR' .* did you mean SOLVER\.MAX_ITER\?"),
        ("INPUT:\n  MIN_SIZE_TRAIN: abc\n", r"MIN_SIZE_TRAIN in .* \['abc'\]: expected numbers, such as \(800,\)"),
        ("DATASETS: {PSF_REGISTER: [0]}\n", r"DATASETS\.PSF_REGISTER in .* is \[0\]: expected texts$"),
        ("DATASETS: {TRAIN: 3}\n", r"DATASETS\.TRAIN in .* is \[3\]: expected texts$"),
        ("OUTPUT_DIR: 2020-01-01\n", "OUTPUT_DIR in .* expected a text"),
        ("OUTPUT_DIR: 2020-99-01\n", "has a value that YAML cannot read"),
        ("INPUT:\n  MIN_SIZE_TRAIN: [3, 4\n", r"line 3: not valid YAML \(expected ',' or '\]'"),
        ("MODEL:\n\tDEVICE: cpu\n", "line 2: not valid YAML .*; indent with spaces, not with tabs"),
        ("MODEL: {}\nSEED: 1\nMODEL: {}\n", "line 3: the key MODEL is given twice"),
        ("A: 1\n---\nB: 1\n", "line 2: not valid YAML"),
        ("VERSION: 1\n", "VERSION is 1, expected 2"),
        ("A: " + 3000 * "[", "nested too deeply"),
        ("INPUT:\n  MIN_SIZE_TRAIN: &a [*a]\n", "made by YAML aliases"),
        ("a: &a [" + 999 * "x," + "x]\nb: &b [" + 999 * "*a," + "*a]\n", "made by YAML aliases"),
        (b"OUTPUT_DIR: \xe9\n", r"is not in UTF-8 \(byte 12\): save it as UTF-8"),
        ("SEED: 1\n".encode("utf-16"), "is not in UTF-8"),
        (b"SEED: \x00\n", "not a valid YAML file"),
        (f"SOLVER:\n  BASE_LR: 1{400 * '0'}\n", "line 2: a whole number of 1329 bits: expected at most 63"),
        (f"SEED: 0x{6000 * 'f'}\n", "line 1: a whole number of 24000 bits"),
        (f"SEED: 1{6000 * '0'}\n", "has a value that YAML cannot read"),
        ('OUTPUT_DIR: "a\\0b"\n', r"OUTPUT_DIR in .* is 'a\\x00b': the character '\\x00' is not allowed"),
        ('OUTPUT_DIR: "a\\ud800b"\n', r"OUTPUT_DIR in .*: the character '\\ud800' is not allowed"),
        ('DATASETS: {TRAIN: ["a\\ud800b"]}\n', r"DATASETS\.TRAIN in .*: the character '\\ud800' is not allowed"),
        (b"#" * 2_000_000, "has 2000000 bytes: expected a config"),
    ],
)
def test_one_line_for_each_mistake(cfg: CfgNode, tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        merge_config_file(cfg, path := written(tmp_path, content))
    assert "\n" not in str(caught.value) and path in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("_BASE_: none.yaml\n", r"config\.yaml: its _BASE_ .*none\.yaml does not exist"),
        ("_BASE_: folder\n", r"config\.yaml: its _BASE_ .*folder is a folder"),
        ("_BASE_: 3\n", "_BASE_ is 3: expected the path of a yaml"),
        ('_BASE_: "a\\0b"\n', r"config\.yaml: _BASE_ is 'a\\x00b': the character '\\x00' is not allowed in a path"),
        ('_BASE_: ["\\ud800"]\n', r"the character '\\ud800' is not allowed in a path"),
        ("_BASE_: config.yaml\n", r"_BASE_ leads back to .*config\.yaml"),
        ("_BASE_: [other.yaml]\n", r"other\.yaml: _BASE_ leads back to .*config\.yaml -> .*other\.yaml -> "),
        ("_BASE_: nowhere://x.yaml\n", "nowhere://x.yaml cannot be downloaded|does not exist"),
    ],
)
def test_bases(cfg: CfgNode, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    written(tmp_path, "_BASE_: config.yaml\n", "other.yaml")
    with pytest.raises(UserError, match=message):
        merge_config_file(cfg, written(tmp_path, content))


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("DATASETS.TRAIN", "('mine')", ("mine",)),
        ("MODEL.PSF.ACTIVATION_CHECKPOINTING", "backbone", ["backbone"]),
        ("MODEL.PSF.IMPORTS", "one,two", ["one", "two"]),
        ("INPUT.MIN_SIZE_TRAIN", "640", (640,)),
        ("SOLVER.BASE_LR", "1", 1.0),
        ("OUTPUT_DIR", "2024", "2024"),
        ("OUTPUT_DIR", 30 * "9", 30 * "9"),
        ("OUTPUT_DIR", "{{}}", "{{}}"),
        ("OUTPUT_DIR", "{[]: 1}", "{[]: 1}"),
        ("OUTPUT_DIR", 9999 * "(", 9999 * "("),
        ("MODEL.WEIGHTS", "{1:2,[3]:4}", "{1:2,[3]:4}"),
    ],
)
def test_options(cfg: CfgNode, key: str, text: str, value: object) -> None:
    merge_options(cfg, [key, text])
    node, _, leaf = key.rpartition(".")
    for part in node.split(".") if node else []:
        cfg = cfg[part]
    assert cfg[leaf] == value and type(cfg[leaf]) is type(value)


@pytest.mark.parametrize("key", ["SEED", "SOLVER.BASE_LR", "SOLVER.STEPS", "INPUT.MIN_SIZE_TRAIN"])
@pytest.mark.parametrize("text", [f"0x{6000 * 'f'}", f"1{400 * '0'}", f"1{5000 * '0'}", f"(1, -0x{6000 * 'f'})"])
def test_huge_numbers_are_refused(cfg: CfgNode, key: str, text: str) -> None:
    with pytest.raises(UserError, match=f"{key} in the command line (has a whole number of .* bits|is .*: expected)"):
        merge_options(cfg, [key, text])


def test_options_that_are_refused(cfg: CfgNode) -> None:
    with pytest.raises(UserError, match=r"MODEL\.PSF in the command line has keys below it"):
        merge_options(cfg, ["MODEL.PSF", "3"])
    with pytest.raises(UserError, match=r"MODEL\.WEIGHTS in the command line is None: expected a text"):
        merge_options(cfg, ["MODEL.WEIGHTS", "None"])
