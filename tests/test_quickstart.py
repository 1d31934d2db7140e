"""tools/quickstart.py: what it hands on, without the training itself."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from psf.data import shapes


@pytest.fixture
def quickstart(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module in an empty folder, which lists its commands in `ran` and runs none."""
    spec = importlib.util.spec_from_file_location("psf_quickstart", repository / "tools" / "quickstart.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.ran = []
    monkeypatch.setattr(module, "run", lambda *command: module.ran.append(command))
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setenv("PSF_CACHE", str(tmp_path))
    monkeypatch.setattr(module.DatasetCatalog, "get", lambda name: [{"file_name": "one.png"}])
    return module


def test_options_are_handed_on(
    quickstart: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(shapes.NUM_SCENES, "val", 7)
    results = tmp_path / quickstart.OUTPUT / "results.json"
    results.parent.mkdir(parents=True)
    results.write_text(json.dumps({"panoptic_seg": {"PQ": 50, "PQ_th": 40, "PQ_st": 60}}))
    quickstart.main(["SEED", "1"])
    train, demo = quickstart.ran
    assert train[0] == "train_net.py" and train[-2:] == ("SEED", "1")
    assert demo[0] == "demo/demo.py" and "one.png" in demo
    assert "On 7 held-out scenes: PQ 50.0, PQ_th 40.0, PQ_st 60.0" in capsys.readouterr().out


def test_another_output_folder_is_refused(quickstart: ModuleType) -> None:
    with pytest.raises(SystemExit, match="OUTPUT_DIR is always"):
        quickstart.main(["SEED", "1", "OUTPUT_DIR", "elsewhere"])
    assert quickstart.ran == []
