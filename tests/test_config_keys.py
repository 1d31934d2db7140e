"""Every key that psf adds to a config is read somewhere, and every config that comes with psf can be loaded."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

from psf.config import add_psf_config

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIGS = sorted((REPOSITORY / "configs").rglob("*.yaml"))


def leaves(node: CfgNode, path: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield from leaves(value, f"{path}{key}.") if isinstance(value, CfgNode) else (f"{path}{key}",)


def added_keys() -> list[str]:
    cfg = get_cfg()
    before = set(leaves(cfg))
    add_psf_config(cfg)
    return sorted(set(leaves(cfg)) - before)


def mentioned_names(file: Path) -> set[str]:
    """Attributes and whole strings of a file: what `cfg.MODEL.PSF.HEADS` or `cfg["HEADS"]` mention."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    strings = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return strings | {node.attr for node in nodes if isinstance(node, ast.Attribute)}


@pytest.fixture(scope="module")
def mentioned_together() -> list[set[str]]:
    folders = ("psf", "demo", "tools")
    files = [file for folder in folders for file in (REPOSITORY / folder).rglob("*.py") if file.name != "config.py"]
    return [mentioned_names(file) for file in [*files, REPOSITORY / "train_net.py"]]


@pytest.mark.parametrize("key", added_keys())
def test_key_is_read(key: str, mentioned_together: list[set[str]]) -> None:
    """Some file mentions the key and the node that it is in."""
    assert any(names.issuperset(key.split(".")[-2:]) for names in mentioned_together), f"nothing reads {key}"


def test_add_psf_config_twice_keeps_what_is_set() -> None:
    cfg = get_cfg()
    add_psf_config(cfg)
    cfg.MODEL.PSF.HIDDEN_DIM = 96
    cfg.INPUT.DATASET_MAPPER_NAME = "somebody_elses"
    add_psf_config(cfg)
    assert cfg.MODEL.PSF.HIDDEN_DIM == 96
    assert cfg.INPUT.DATASET_MAPPER_NAME == "somebody_elses"


def test_there_are_configs() -> None:
    assert CONFIGS


@pytest.mark.parametrize("file", CONFIGS, ids=[file.relative_to(REPOSITORY / "configs").as_posix() for file in CONFIGS])
def test_config_loads(file: Path) -> None:
    cfg = get_cfg()
    add_psf_config(cfg)
    cfg.merge_from_file(str(file))  # raises on keys that nobody defined, and on values of another type
    assert cfg.MODEL.META_ARCHITECTURE == "PanopticSegFormer"
