"""Every yaml that comes with psf: what it adds to its base, that its model is built, trains and predicts."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

from psf import PanopticSegFormer, add_psf_config
from psf.config import SHARED_KEYS
from psf.engine import build_config
from psf.meta_arch import classes_from_config
from tests.models import check_result, gradients, make_input

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = {file.relative_to(CONFIGS).as_posix(): file for file in sorted(CONFIGS.rglob("*.yaml"))}
ROWS = [name for name in FILES if not name.startswith(("shapes/", "small/", "cityscapes/")) and "Base-" not in name]
CHILDREN = [name for name, file in FILES.items() if "_BASE_:" in file.read_text()]

# Of the keys outside MODEL.PSF, those that no other plugin is known to have.
PSF_ALONE = {
    "SOLVER.BACKBONE_LAYER_DECAY",
    "SOLVER.SAMPLING_MULTIPLIER",
    "SOLVER.AMP.DTYPE",
    "SOLVER.CHECKPOINT_KEEP_EVERY",
    "SOLVER.CHECKPOINT_MINUTES",
    "SOLVER.CHECKPOINTS_TO_KEEP",
    "SOLVER.MAX_SKIPPED_STEPS",
    "DATALOADER.MAX_UNREADABLE_SHARE",
    "DATALOADER.TIMEOUT",
    "DATASETS.TRAIN_REPEAT_FACTOR",
}

# Keys that one mapper alone reads.
OF_LSJ = {"INPUT.IMAGE_SIZE", "INPUT.MIN_SCALE", "INPUT.MAX_SCALE", "INPUT.COLOR_AUG_SSD"}
OF_CITYSCAPES = {"INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", "INPUT.COLOR_AUG_SSD"}

# Every size becomes the smaller of the config's and this.
SMALL = {
    "HIDDEN_DIM": 32,
    "NUM_HEADS": 4,
    "NUM_THING_QUERIES": 8,
    "TEST.NUM_TOP_PAIRS": 10,
    "PIXEL_ENCODER.NUM_LAYERS": 1,
    "LOCATION_DECODER.NUM_LAYERS": 2,
    "MASK_DECODER.NUM_THING_LAYERS": 2,
    "MASK_DECODER.NUM_STUFF_LAYERS": 2,
    **{f"{part}.FEEDFORWARD_DIM": 32 for part in ("PIXEL_ENCODER", "LOCATION_DECODER", "MASK_DECODER")},
}
NARROW = {
    "MODEL.RESNETS": {"STEM_OUT_CHANNELS": 8, "WIDTH_PER_GROUP": 8, "RES2_OUT_CHANNELS": 16},
    "MODEL.PSF.SWIN": {"EMBED_DIM": 16, "DEPTHS": [1, 1, 1, 1], "NUM_HEADS": [1, 2, 4, 8]},
}


def config(name: str) -> CfgNode:
    """The config of a file; where it has no dataset, with classes."""
    cfg = build_config(str(FILES[name]))
    if not cfg.DATASETS.TRAIN:
        cfg.MODEL.PSF.NUM_THING_CLASSES, cfg.MODEL.PSF.NUM_STUFF_CLASSES = 3, 4
    if cfg.MODEL.PSF.NUM_THING_QUERIES < 0:  # from a dataset, which is not at hand
        cfg.MODEL.PSF.NUM_THING_QUERIES = 100
    return cfg


def reduced(name: str) -> CfgNode:
    """The same model, with few and thin layers, on the CPU."""
    cfg = config(name)
    settings = cfg.MODEL.PSF
    options: dict[str, Any] = {"MODEL.DEVICE": "cpu", "MODEL.WEIGHTS": ""}
    for key, size in SMALL.items():
        value = settings
        for part in key.split("."):
            value = value[part]
        options[f"MODEL.PSF.{key}"] = min(value, size)
    options |= {f"{node}.{key}": value for node, keys in NARROW.items() for key, value in keys.items()}
    if settings.TIMM.NAME.startswith("pvt_v2_"):
        options["MODEL.PSF.TIMM.NAME"] = "pvt_v2_b0"
    cfg.merge_from_list([word for option in options.items() for word in option])
    return cfg


def leaves(node: dict[str, Any], path: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield from leaves(value, f"{path}{key}.") if isinstance(value, dict) else [path + key]


def value_at(cfg: CfgNode, path: str) -> Any:
    for key in path.split("."):
        cfg = cfg[key]
    return cfg


@pytest.mark.parametrize("name", CHILDREN)
def test_no_leaf_repeats_what_it_inherits(name: str):
    content = yaml.safe_load(FILES[name].read_text())
    base = build_config(str(FILES[name].parent / content.pop("_BASE_")))
    merged = copy.deepcopy(base)
    merged.merge_from_file(str(FILES[name]))
    repeated = {leaf for leaf in leaves(content) if value_at(merged, leaf) == value_at(base, leaf)}
    assert repeated <= OF_LSJ


def test_the_base_says_what_differs_from_the_defaults_and_what_is_shared():
    content = yaml.safe_load(FILES["Base-PSF.yaml"].read_text())
    defaults, base = get_cfg(), build_config(str(FILES["Base-PSF.yaml"]))
    own = set(leaves(defaults))
    add_psf_config(defaults)
    shared = {*SHARED_KEYS, "VERSION"}  # and Detectron2 asks for a version
    assert {leaf for leaf in leaves(content) if value_at(base, leaf) == value_at(defaults, leaf)} <= shared
    # Other plugins define these keys, too: the configs whose mapper reads them name each, whatever the defaults there.
    named = {leaf for leaf in SHARED_KEYS if leaf not in own and "PSF" not in leaf} - PSF_ALONE
    assert named - OF_LSJ - OF_CITYSCAPES <= set(leaves(content))
    for name, keys in (("ade20k/psf_R50.yaml", OF_LSJ), ("cityscapes/psf_R50.yaml", OF_CITYSCAPES)):
        assert keys <= set(leaves(yaml.safe_load(FILES[name].read_text())))


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_short(name: str):
    """Twenty lines: ADE20K's names the keys that its mapper alone reads."""
    lines = [line.strip() for line in FILES[name].read_text().splitlines()]
    assert len([line for line in lines if line and not line.startswith(("#", "_BASE_:"))]) <= 20


def test_the_zoo_lists_every_row_and_nothing_else():
    text = (CONFIGS.parent / "docs" / "model_zoo.md").read_text()
    named = set(re.findall(r"configs/([\w./-]+\.yaml)", text))
    assert named == {*ROWS, "cityscapes/psf_R50.yaml"}
    assert named <= set(FILES)
    lazy = set(re.findall(r"configs/(lazy/\w+\.py)", text))
    assert lazy == {f"lazy/{path.name}" for path in (CONFIGS / "lazy").glob("*.py")} - {"lazy/backbones.py"}


@pytest.mark.parametrize("name", FILES)
def test_builds(name: str):
    """At full size, without its memory."""
    cfg = config(name)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    assert isinstance(model, PanopticSegFormer)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert len(model.classes.stuff_ids) == (0 if name.startswith("instance/") else len(classes_from_config(cfg)[1]))


def steps() -> Iterator[Any]:
    """All files; those slow that are, when reduced, the same model as one before."""
    seen = set()
    for name in FILES:
        model = repr([reduced(name).MODEL, classes_from_config(config(name))])
        yield pytest.param(name, marks=[pytest.mark.slow] if model in seen else [])
        seen.add(model)


@pytest.mark.parametrize("name", list(steps()))
def test_trains_and_predicts(name: str):
    cfg = reduced(name)
    torch.manual_seed(0)
    model = build_model(cfg)
    inputs = [make_input(64, 96, things=2, stuff=1), make_input(50, 70, things=1, stuff=2, seed=1)]
    thing_ids, stuff_ids = (ids or (10**6,) for ids in classes_from_config(cfg))
    for x in inputs:
        for i, segment in enumerate(x["segments_info"]):
            ids = thing_ids if segment["isthing"] else stuff_ids
            segment["category_id"] = ids[i % len(ids)]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses, found = gradients(model, inputs)
    assert all(value.isfinite() for value in losses.values())
    assert [name for name, gradient in found.items() if gradient is None] == []
    optimizer.step()

    model.eval()
    with torch.no_grad():
        [result] = model(inputs[:1])
    asked = cfg.MODEL.PSF.TEST
    wanted = {"panoptic_seg": asked.PANOPTIC_ON, "instances": asked.INSTANCE_ON, "sem_seg": asked.SEMANTIC_ON}
    assert set(result) == {key for key, on in wanted.items() if on}
    if all(wanted.values()):
        check_result(result, model, 64, 96)
