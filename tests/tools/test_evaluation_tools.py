"""tools/eval_robustness.py and tools/tune_merging.py on the mini set: what they write and say."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from detectron2.utils.logger import setup_logger

from tests.mini_set import register_mini_set, unregister_mini_set, write_mini_set
from tests.models import tiny_config, tiny_model

Main = Callable[[Sequence[str]], int]


@pytest.fixture(autouse=True)
def _loggers() -> Iterator[None]:
    yield
    setup_logger.cache_clear()
    for name in ("detectron2", "fvcore", "psf"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True


@pytest.fixture
def load(repository: Path) -> Callable[[str], Main]:
    def main_of(name: str) -> Main:
        spec = importlib.util.spec_from_file_location(f"psf_{name}", repository / "tools" / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.main

    return main_of


@pytest.fixture
def words(tmp_path: Path) -> Iterator[list[str]]:
    """A model with weights, on a registered set; output goes to tmp_path/output."""
    write_mini_set(tmp_path / "mini")
    name = register_mini_set(tmp_path / "mini")
    counts = {"NUM_THING_CLASSES": -1, "NUM_STUFF_CLASSES": -1}
    counts |= {f"POST_PROCESSOR.{kind}.T_CNF": 0.1 for kind in ("THINGS", "STUFF")}
    more = {"DATASETS__TEST": (name,), "INPUT__MIN_SIZE_TEST": 32, "DATALOADER__NUM_WORKERS": 0}
    torch.save({"model": tiny_model(counts, **more).state_dict()}, tmp_path / "weights.pth")
    (tmp_path / "model.yaml").write_text(tiny_config(counts, **more).dump())
    options = ["MODEL.WEIGHTS", str(tmp_path / "weights.pth"), "OUTPUT_DIR", str(tmp_path / "output")]
    yield ["--config-file", str(tmp_path / "model.yaml"), "--num-gpus", "0", *options]
    unregister_mini_set()


class TestRobustness:
    chosen = ("--corruptions", "fog,saturate", "--severities", "3", "--num-images", "3")

    def test_measures_goes_on_and_refuses(
        self, load: Callable[[str], Main], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ):
        main, output = load("eval_robustness"), tmp_path / "output"
        assert main(["--corruptions", "fog", *self.chosen[2:], *words]) == 0
        record = json.loads((output / "robustness.json").read_text())
        assert set(record["results"]) == {"clean", "fog-3"} and record["about"]["num_images"] == 3
        record["results"]["clean"]["PQ"] = 99.5  # is kept as it is
        (output / "robustness.json").write_text(json.dumps(record))
        assert main([*self.chosen, *words]) == 0
        again = json.loads((output / "robustness.json").read_text())
        assert set(again["results"]) == {"clean", "fog-3", "saturate-3"} and again["about"] == record["about"]
        assert again["results"]["clean"]["PQ"] == 99.5
        text = capsys.readouterr().out
        assert "| saturate " in text and "mean of 2" in text and "99.50" in text
        assert "mean of 2" in (output / "robustness.md").read_text()
        assert (output / "robustness.png").stat().st_size > 1000

        assert main([*self.chosen, *words, "INPUT.MIN_SIZE_TEST", "40"]) == 2
        assert "was measured with settings" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("chosen", "message"),
        [
            (("--corruptions", "rain"), "no such rain; there are motion_blur"),
            (("--severities", "0"), "no such 0; there are 1, 2"),
            (("--num-images", "0"), "expected 1 or more"),
        ],
    )
    def test_wrong_words(
        self, load: Callable[[str], Main], chosen: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
    ):
        with pytest.raises(SystemExit) as stop:
            load("eval_robustness")([*chosen, "--config-file", "any.yaml"])
        assert stop.value.code == 2 and message in capsys.readouterr().err


class TestTuning:
    def test_prints_surfaces_and_options(
        self, load: Callable[[str], Main], words: list[str], capsys: pytest.CaptureFixture[str]
    ):
        few = ("--alpha", "1", "--beta", "1,2", "--t-cnf", "0.1,0.3", "--t-keep", "0.5", "--num-images", "4")
        assert load("tune_merging")([*few, *words]) == 0
        text = capsys.readouterr().out
        assert "4 images" in text and "PQ over THINGS" in text and "PQ over STUFF" in text
        options = text.strip().splitlines()[-1].split()
        cfg = tiny_config()
        cfg.merge_from_list(options)
        assert len(options) == 16 and cfg.MODEL.PSF.POST_PROCESSOR.THINGS.T_CNF in (0.1, 0.3)

    def test_wrong_post_processor(
        self, load: Callable[[str], Main], words: list[str], capsys: pytest.CaptureFixture[str]
    ):
        assert load("tune_merging")([*words, "MODEL.PSF.POST_PROCESSOR.NAME", "PixelArgmax"]) == 2
        assert "only MaskWiseMerging" in capsys.readouterr().err
