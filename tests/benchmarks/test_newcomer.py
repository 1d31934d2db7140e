"""The counts of benchmarks/newcomer.py, on a narrow model and on made-up functions."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from psf.structures import types as boxes

NARROW = {
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.PSF.HIDDEN_DIM": 32,
    "MODEL.PSF.NUM_THING_QUERIES": 20,
    "MODEL.PSF.PIXEL_ENCODER.NUM_LAYERS": 1,
    "MODEL.PSF.LOCATION_DECODER.NUM_LAYERS": 1,
    "MODEL.PSF.MASK_DECODER.NUM_THING_LAYERS": 1,
    "MODEL.PSF.MASK_DECODER.NUM_STUFF_LAYERS": 1,
}


@pytest.fixture
def newcomer(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(repository / "benchmarks")
    monkeypatch.setenv("PSF_BENCHMARK_RESULTS", str(tmp_path))
    yield importlib.import_module("newcomer")
    for name in ("newcomer", "report"):
        sys.modules.pop(name, None)


@pytest.mark.filterwarnings("ignore")
def test_narrow_model(newcomer: ModuleType, tmp_path: Path):
    newcomer.main([str(word) for pair in NARROW.items() for word in pair])
    [path] = tmp_path.glob("*_newcomer.md")
    text = path.read_text()
    [step] = [line for line in text.splitlines() if line.startswith("* training step: ")]
    [image] = [line for line in text.splitlines() if line.startswith("* image at test: ")]
    for name in ("meta_arch/panoptic_segformer.py", "modeling/mask_decoder.py", "structures/types.py"):
        assert f"`{name}`" in step and f"`{name}`" in image
    assert "`losses/criterion.py`" in step and "losses/" not in image
    assert "`inference/mask_wise_merging.py`" in image and "mask_wise_merging" not in step
    assert "data/" not in step and "ops/" not in step + image
    rows = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in text.splitlines() if line[:1] == "|"}
    assert rows["import layers"] == "6"
    assert rows["files, lines of one training step: model"].startswith(f"{step.count('`') // 2} files")


def test_functions_that_run(newcomer: ModuleType):
    import torch

    with newcomer.running_files() as files:
        boxes.tight_boxes(torch.ones(1, 2, 2, dtype=torch.bool))
    assert files == {Path(boxes.__file__).resolve()}


def test_where_a_name_is_defined(newcomer: ModuleType):
    """Through packages that only import it: a class, and a constant."""
    found = newcomer.defining_file("psf.structures", "DecodedMasks"), newcomer.defining_file("psf.losses", "Assignment")
    assert found[0].name == "types.py" and found[1].parent.name == "losses"
    assert newcomer.defining_file("psf.data", "DATASET_MAPPER_REGISTRY").name == "mappers.py"


def test_targets(newcomer: ModuleType):
    assert newcomer.at_most(8, 8) == "<= 8: met" and newcomer.at_most(8, 8.1) == "<= 8: MISSED"
