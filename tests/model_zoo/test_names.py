"""Names of configs and models on the command line: what they mean, and the hint for those that mean nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from psf.__main__ import mistyped_file
from psf.errors import UserError
from psf.model_zoo import find_config_file, find_model


def test_configs() -> None:
    assert Path(find_config_file("coco/psf_R50_24ep.yaml")).is_file()
    with pytest.raises(UserError, match="is a LazyConfig"):
        find_config_file("lazy/released.py")
    with pytest.raises(UserError, match="is missing: expected a yaml"):
        find_config_file("")


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder: expected a yaml"):
        find_config_file(str(tmp_path))


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("shapes/psf_tny.yaml", r"did you mean shapes/psf_tiny\.yaml\?$"),
        ("configs/shapes/psf_tny.yaml", r"did you mean shapes/psf_tiny\.yaml\?$"),
        ("smal/psf_small.yaml", r"did you mean small/psf_small\.yaml\?$"),
        ("coco/released/psf_R50_24p.yaml", r"did you mean coco/released/psf_R50_24ep\.yaml"),
        ("my/cells.yaml", r"contains \d+ configs$"),
        ("experiment.yaml", r"contains \d+ configs$"),
    ],
)
def test_a_hint_names_only_similar_configs(written: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        find_config_file(written)


def test_models(tmp_path: Path) -> None:
    (tmp_path / "R50").write_bytes(b"a file of the user")
    assert find_model("r101") == find_model("R101_24ep") == "psf://released/R101_24ep"
    assert find_model("https://host/model.pth?key=1") == "https://host/model.pth?key=1"
    assert find_model(str(tmp_path / "R50")) == str(tmp_path / "R50")
    for name, message in (
        ("", "is empty"),
        ("no.pth", r"^no\.pth: no such model file$"),
        ("R5O", "R5O: no such model file; .* did you mean R50"),
    ):
        with pytest.raises(UserError, match=message):
            find_model(name)


def test_a_mistyped_file_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    """In a fresh process, whose imports would take seconds."""
    for words in (
        ["train", "--num-gpus", "0", "--config-file", "shapes/psf_tny.yaml"],
        ["predict", "--model", "nothing.pth", "photo.jpg"],
    ):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "psf", *words], capture_output=True, text=True, cwd=tmp_path
        )
        lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
        assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: ")
        assert not any(line.endswith(" torch") for line in done.stderr.splitlines())


def test_words_without_a_file() -> None:
    assert mistyped_file(["--num-gpus", "0", "--config-file"]) == ""
    assert mistyped_file(["--config-file", "shapes/psf_tiny.yaml", "--model", "R50"]) == ""
    assert "psf_tiny" in mistyped_file(["--config-file", "shapes/psf_tny.yaml"])
    assert "psf_tiny" in mistyped_file(["--config-file=shapes/psf_tny.yaml", "--num-gpus", "0"])
    assert "R50" in mistyped_file(["--model=R5O"])
