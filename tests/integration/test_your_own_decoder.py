"""docs/your-own-decoder.md: its example, as a newcomer would copy it, is checked, trained and used again."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from psf.engine import Predictor, build_config
from psf.modeling.interfaces import MASK_DECODER_REGISTRY
from tests.conftest import RunPython
from tests.mini_set import NAME, unregister_mini_set, write_mini_set
from tests.models import SMALL as SMALL_RECIPE
from tests.models import gradients, make_input, tiny_model

SMALL = (
    "MODEL.PSF.HIDDEN_DIM 64 MODEL.PSF.POST_PROCESSOR.TUNE_IMAGES 0 "
    "MODEL.PSF.NUM_THING_QUERIES 5 MODEL.PSF.PIXEL_ENCODER.NUM_LAYERS 1 "
    "MODEL.PSF.LOCATION_DECODER.NUM_LAYERS 1 MODEL.PSF.MASK_DECODER.NUM_THING_LAYERS 1 "
    "MODEL.PSF.MASK_DECODER.NUM_STUFF_LAYERS 1 SOLVER.MAX_ITER 2 SOLVER.IMS_PER_BATCH 2 DATALOADER.NUM_WORKERS 0 "
    "INPUT.MIN_SIZE_TRAIN (32,) INPUT.MIN_SIZE_TEST 32 TEST.EVAL_PERIOD 0"
)


@pytest.fixture
def page(repository: Path, tmp_path: Path) -> str:
    """The text of the page, whose examples are written to my_decoder.py and test_my_decoder.py."""
    text = (repository / "docs" / "your-own-decoder.md").read_text()
    example, test = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(example.splitlines()) <= 45
    (tmp_path / "my_decoder.py").write_text(example)
    (tmp_path / "test_my_decoder.py").write_text(test)
    return text


def test_it_meets_the_contract(page: str, run_python: RunPython, repository: Path, tmp_path: Path) -> None:
    command = ["-W", "ignore", "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_decoder.py"]
    done = run_python(*command, path=[repository, tmp_path], cwd=tmp_path)
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout + done.stderr


@pytest.fixture
def forget_decoder() -> Iterator[None]:
    """The module and its class are gone after the test."""
    yield
    sys.modules.pop("my_decoder", None)
    MASK_DECODER_REGISTRY._obj_map.pop("DotProductDecoder", None)


def test_it_trains_all_parts_of_the_small_recipe(
    page: str, forget_decoder: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mask feature map and the fine level, which only some recipes have, too."""
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("my_decoder")
    levels = {"IN_FEATURES": ["res4", "res5"], "FINE_FEATURE": "res3", "MASK_FEATURE": "res2"}
    keys = {**SMALL_RECIPE, **levels, "MASK_DECODER.NAME": "DotProductDecoder"}
    _, found = gradients(
        tiny_model(keys), [make_input(64, 96, things=2, stuff=2), make_input(48, 64, things=1, stuff=1)]
    )
    assert [name for name, gradient in found.items() if gradient is None] == []


def test_it_is_trained_and_used(
    page: str,
    forget_decoder: None,
    run_python: RunPython,
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two processes train, each of which imports the module; the config that they write needs no flag."""
    [command] = re.findall(r"```sh\n(.*?)\n```", page, re.S)
    program, train, *words = shlex.split(command.replace("\\\n", " "))
    assert (program, train) == ("psf", "train")
    mini = tmp_path / "mini"
    write_mini_set(mini)
    data = ["--register", f"{NAME}={mini}/panoptic.json,{mini}/panoptic,{mini}/images"]
    flags = [*data, "--num-gpus", "0", "--num-processes", "2"]
    keys = ["DATASETS.TRAIN", NAME, "DATASETS.TEST", "()", "OUTPUT_DIR", "output", *SMALL.split()]
    done = run_python("-W", "ignore", "-m", "psf", "train", *flags, *words, *keys, path=[repository], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    weights = ["MODEL.WEIGHTS", "output/model_final.pth", "MODEL.DEVICE", "cpu"]
    try:
        predictor = Predictor(build_config("output/config.yaml", [*weights, "DATASETS.TEST", NAME]))
    finally:
        unregister_mini_set()
    assert type(predictor.model.thing_decoder).__name__ == "DotProductDecoder"
    panoptic_seg, _ = predictor(np.zeros((40, 60, 3), dtype=np.uint8))["panoptic_seg"]
    assert panoptic_seg.shape == (40, 60)
