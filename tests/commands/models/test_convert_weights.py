"""psf convert-weights: what it says, and its exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision

from psf.commands.models import convert_weights as tool
from tests.models import tiny_config

RESNET18 = {"DEPTH": 18, "STEM_OUT_CHANNELS": 64, "WIDTH_PER_GROUP": 64, "RES2_OUT_CHANNELS": 64}


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    cfg = tiny_config({}, **{f"MODEL__RESNETS__{key}": value for key, value in RESNET18.items()})
    path = tmp_path / "model.yaml"
    path.write_text(cfg.dump())
    return str(path)


def test_says_what_it_used_and_what_comes_next(
    config_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = str(tmp_path / "resnet18.pth"), str(tmp_path / "out.pth")
    torch.save(torchvision.models.resnet18().state_dict(), source)
    assert tool.main([source, target, "--config-file", config_file]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "ImageNet backbone: 100 of 122 entries used",
        "  dropped on purpose: 2 of fc.*",
        "  dropped on purpose: 20 of *.num_batches_tracked",
        f"100 entries written to {target}. Next:",
        f"psf train --config-file {config_file} MODEL.WEIGHTS {target}",
    ]
    assert tool.main([source, target, "--config-file", config_file]) == 2
    assert "already exists" in capsys.readouterr().err
    assert tool.main([source, target, "--config-file", config_file, "--force"]) == 0


def test_a_mistake_is_one_line(config_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["none.pth", "out.pth", "--config-file", config_file], ["a", "b", "--config-file", "none.yaml"]):
        assert tool.main(words) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and "none." in line
