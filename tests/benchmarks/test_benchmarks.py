"""Every benchmark runs, with tiny sizes; and none reports a time for something wrong."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

SCRIPTS = (
    "compiled",
    "evaluation",
    "half_precision",
    "loader",
    "mask_decoder",
    "merging",
    "ms_deform_attn",
    "panoptic_quality",
)
SCRIPTS += ("serving", "start", "training_memory", "training_step", "whole_model")
ON_A_DEVICE = set(SCRIPTS) - {"evaluation", "loader", "panoptic_quality", "serving", "start"}


class Benchmarks:
    """Runs benchmarks/NAME.py in this process."""

    def __init__(self, results: Path):
        self.results = results

    def module(self, name: str) -> ModuleType:
        return importlib.import_module(name)

    def run(self, name: str, *words: str, results: str = "") -> str:
        """The file that it wrote, called DATE_{results or name}.md."""
        device = ["--device", "cpu"] if name in ON_A_DEVICE else []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Detectron2's and panopticapi's
            self.module(name).main(["--quick", "--rounds", "1", *device, *words])
        [path] = self.results.glob(f"????-??-??_{results or name}.md")
        return path.read_text()

    def not_measured(self, name: str) -> int:
        """Rows of docs/benchmarks.md on a CPU for which the written file has no number."""
        summary = self.module("summary").summary(self.results)
        [rows] = [t.rows for t in self.module("summary").TABLES if (t.name, t.device) == (name, "CPU")]
        lines = [line for line in summary.splitlines() if line.startswith("| CPU") and f"| `{name}` " in line]
        assert len(lines) == len(rows) > 0
        return sum("not measured" in line for line in lines)


@pytest.fixture
def benchmarks(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Benchmarks]:
    threads, known = torch.get_num_threads(), set(sys.modules)
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    allow_tf32 = [backend.allow_tf32 for backend in backends]
    folder = repository / "benchmarks"
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PSF_BENCHMARK_RESULTS", str(tmp_path / "results"))
    yield Benchmarks(tmp_path / "results")
    torch.set_num_threads(threads)
    for backend, allow in zip(backends, allow_tf32, strict=True):
        backend.allow_tf32 = allow
    for name in {path.stem for path in folder.glob("*.py")} - known:
        sys.modules.pop(name, None)


def test_all_scripts_are_here(repository: Path):
    shared = {"kept_memory", "peers", "plain_mask_decoder", "released_model", "report", "scenes", "summary"}
    shared |= {"mask_rcnn_model", "panoptic_instances"}
    # No claim of speed: newcomer counts files, tiles needs a trained model, the others train some.
    others = {"dead_mask_heads", "mask_rcnn_peer", "newcomer", "small_recipe", "tiles"}
    assert {path.stem for path in (repository / "benchmarks").glob("*.py")} == shared | others | set(SCRIPTS)


def test_both_lists_of_scripts_are_complete(repository: Path):
    """`make bench` runs all of them, `make gpu-check` those that know a device."""
    makefile, gpu_check = ((repository / name).read_text() for name in ("Makefile", "benchmarks/gpu_check.sh"))
    makefile = makefile.replace("\\\n", "")
    [line] = [line for line in makefile.splitlines() if line.startswith("BENCHMARKS :=")]
    assert {item.partition(":")[0] for item in line.split()[2:]} == set(SCRIPTS)
    [line] = [line for line in gpu_check.splitlines() if line.startswith("for name in ")]
    assert set(line.removesuffix("; do").split()[3:]) == ON_A_DEVICE


@pytest.mark.parametrize("name", SCRIPTS)
def test_none_measures_in_tf32(benchmarks: Benchmarks, name: str):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    with pytest.raises(SystemExit):
        benchmarks.module(name).main(["--help"])
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32


class TestTheyRun:
    def test_merging(self, benchmarks: Benchmarks):
        table = benchmarks.run("merging", "--threads", "1")
        assert "153 candidates at 96 x 160" in table and "maps, ids, instances identical" in table

    def test_mask_decoder(self, benchmarks: Benchmarks):
        table = benchmarks.run("mask_decoder", "--threads", "1")
        assert "| training, both" in table and "kept, MB" in table

    def test_ms_deform_attn(self, benchmarks: Benchmarks):
        assert "psf's choice" in benchmarks.run("ms_deform_attn")

    def test_loader(self, benchmarks: Benchmarks):
        assert "masks and boxes identical" in benchmarks.run("loader")

    def test_evaluation(self, benchmarks: Benchmarks):
        table = benchmarks.run("evaluation", "--milliseconds", "1")
        assert "All evaluations have the same results (PQ 8" in table
        assert "parsed the panoptic JSON 1 times and decoded 1.00 PNGs per image, 0 of all in the main thread" in table

    def test_start(self, benchmarks: Benchmarks):
        table = benchmarks.run("start")
        for row in ("psf --help", "psf predict over imports", "psf train to the end of its first iteration"):
            assert row in table
        assert benchmarks.not_measured("start") == 0

    def test_serving(self, benchmarks: Benchmarks):
        pytest.importorskip("psf.tools.serving", reason="needs the packages of the extra serve")
        table = benchmarks.run("serving")
        assert "| 16 clients " in table and "memory at the end over that at the beginning" in table
        assert benchmarks.not_measured("serving") == 0

    def test_panoptic_quality(self, benchmarks: Benchmarks, monkeypatch: pytest.MonkeyPatch):
        evaluation = importlib.import_module("panopticapi.evaluation")
        monkeypatch.setattr(evaluation, "pq_compute_multi_core", evaluation.pq_compute_multi_core)  # put back after it
        catalogs = importlib.import_module("detectron2.data")
        try:
            assert "counts and IoU sums identical" in benchmarks.run("panoptic_quality")
        finally:
            for catalog in (catalogs.DatasetCatalog, catalogs.MetadataCatalog):
                catalog.remove(benchmarks.module("panoptic_quality").GENERATED)

    def test_tiles(self, benchmarks: Benchmarks):
        catalogs, tiles = importlib.import_module("detectron2.data"), benchmarks.module("tiles")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tiles.main(["--weights", "", "--side", "2", "--num-images", "1"])
        finally:
            for catalog in (catalogs.DatasetCatalog, catalogs.MetadataCatalog):
                catalog.remove(tiles.MOSAICS)
        [path] = benchmarks.results.glob("*_tiles.md")
        assert [line.split()[1:4:2] for line in path.read_text().splitlines() if line.startswith("|  ")][1:] == [
            ["160", "none"], ["320", "none"], ["320", "160"], ["320", "240"]
        ]  # fmt: skip

    def test_dead_mask_heads(self, benchmarks: Benchmarks):
        words = ["--num-images", "2", "--size", "32", "--batch", "1", "--iterations", "10", "--seeds", "1"]
        words += ["--variants", "relu, revive", "--rates", "0.0005", "0.002"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            benchmarks.module("dead_mask_heads").main(words)
        [path] = benchmarks.results.glob("*_dead_mask_heads.md")
        rows = [[cell.strip() for cell in line.split("|")] for line in path.read_text().splitlines()]
        rows = [row for row in rows if len(row) == 10 and row[1] == "relu, revive"]
        assert [row[2] for row in rows] == ["0.0005", "0.002"]
        assert all(row[3] in ("0 of 1", "1 of 1") and 0 <= int(row[4]) <= 6 for row in rows)
        assert all(0 < float(loss) <= 2 for row in rows for loss in row[5:8])
        assert rows[0][5:] != rows[1][5:]  # the rate is used

    def test_small_recipe(self, benchmarks: Benchmarks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        """Runs that are there already are read, others are trained: here by a stand-in that writes their results."""
        module, commands = benchmarks.module("small_recipe"), []

        def train(command: list[str], log: Path) -> None:
            commands.append(command)
            folder, seed = Path(command[command.index("OUTPUT_DIR") + 1]), int(command[command.index("SEED") + 1])
            names = {"PQ": 10.0 * seed, "PQ_th": 1.0, "PQ_st": 2.0}
            (folder / "results.json").write_text(json.dumps({"panoptic_seg": names, "segm": {"AP": 3.0, "AP50": 4.0}}))

        monkeypatch.setattr(module, "train", train)
        words = ["--seeds", "2", "--output", str(tmp_path / "runs"), "--variants", "the recipe", "no box prior"]
        for _ in range(2):
            module.main(words)
        assert len(commands) == 4 and commands[3][-2:] == ["MODEL.PSF.MASK_DECODER.BOX_PRIOR", "False"]
        [path] = benchmarks.results.glob("*_small_recipe.md")
        assert path.read_text().count("15.0 (10.0 to 20.0)") == 4

    def test_half_precision(self, benchmarks: Benchmarks, tmp_path: Path):
        """The weights are random, which shows that the rows are there, not their numbers."""
        module, weights = benchmarks.module("half_precision"), tmp_path / "model.pth"
        model = module.Trainer.build_model(module.build_config(module.TRAINED, ["MODEL.DEVICE", "cpu"]))
        torch.save({"model": model.state_dict()}, weights)
        table = benchmarks.run("half_precision", "--weights", str(weights))
        assert table.count("| bfloat16 |") == 3
        assert benchmarks.not_measured("half_precision") == 0

    @pytest.mark.slow
    def test_training_memory(self, benchmarks: Benchmarks):
        table = benchmarks.run("training_memory", "--threads", "1")
        kept = [float(line.split("|")[4]) for line in table.splitlines() if "| batch 1 |" in line]
        assert len(kept) == 2 and kept[1] < 0.5 * kept[0]
        assert benchmarks.not_measured("training_memory") == 0

    @pytest.mark.slow
    def test_compiled(self, benchmarks: Benchmarks):
        table = benchmarks.run("compiled", "--threads", "1")
        assert "| torch.compile |" in table and "failed" not in table
        assert benchmarks.not_measured("compiled") == 0
        benchmarks.run("compiled", "--threads", "1", "--training", results="compiled_training")

    @pytest.mark.slow
    def test_training_step(self, benchmarks: Benchmarks):
        assert "losses equal" in benchmarks.run("training_step", "--threads", "1")

    @pytest.mark.slow
    def test_whole_model(self, benchmarks: Benchmarks):
        table = benchmarks.run("whole_model", "--threads", "1")
        assert "13 segments, 100 instances" in table and "bfloat16" in table


class TestTheirChecks:
    """With something broken they end before any time is reported."""

    def assert_ends(self, benchmarks: Benchmarks, name: str, message: str) -> None:
        with pytest.raises(SystemExit, match=message) as ended:
            benchmarks.run(name)
        assert ended.value.code != 0
        assert not benchmarks.results.exists()

    def test_another_order_of_painting(self, benchmarks: Benchmarks, monkeypatch: pytest.MonkeyPatch):
        module = benchmarks.module("merging")
        plain = module.plain_merging
        monkeypatch.setattr(module, "plain_merging", lambda s: plain(s._replace(confidence=s.confidence.flip(0))))
        self.assert_ends(benchmarks, "merging", "the segments differ")

    def test_masks_that_are_a_little_off(self, benchmarks: Benchmarks, monkeypatch: pytest.MonkeyPatch):
        class Off(nn.Module):
            def __init__(self, decoder: Any):
                super().__init__()
                self.plain = plain(decoder)

            def forward(self, *args: Any, **kwargs: Any) -> Any:
                decoded = self.plain(*args, **kwargs)
                return decoded._replace(mask_scores=[1.001 * m for m in decoded.mask_scores])

        module = benchmarks.module("mask_decoder")
        plain = module.PlainMaskDecoder
        monkeypatch.setattr(module, "PlainMaskDecoder", Off)
        self.assert_ends(benchmarks, "mask_decoder", "things, float64: psf and the plain decoder differ by 1.0e-03")

    def test_checkpointing_that_changes_a_loss(self, benchmarks: Benchmarks):
        with pytest.raises(SystemExit, match=r"loss_box .*: 2\.1, but 2\.0 without"):
            benchmarks.module("training_memory").check(("backbone",), {"loss_box": 2.1}, {"loss_box": 2.0})

    def test_compiled_code_that_is_a_little_off(self, benchmarks: Benchmarks):
        measure = benchmarks.module("compiled").measure
        variants = {"eager": lambda: lambda: [torch.ones(3)], "torch.compile": lambda: lambda: [1.01 * torch.ones(3)]}
        with pytest.raises(SystemExit, match=r"the results differ by 1\.0e-02"):
            measure(variants, "cpu", torch.float32, 1, training=False)

    def test_what_does_not_compile_gets_no_time(self, benchmarks: Benchmarks):
        def fail() -> Any:
            raise RuntimeError("no compiler")

        variants = {"eager": lambda: lambda: [torch.ones(3)], "torch.compile": fail}
        _, failed = benchmarks.module("compiled").measure(variants, "cpu", torch.float32, 1, training=False)
        assert failed == ["test", "float32", "torch.compile failed: RuntimeError"]

    def test_attention_that_is_a_little_off(self, benchmarks: Benchmarks, monkeypatch: pytest.MonkeyPatch):
        module = benchmarks.module("ms_deform_attn")
        ours = module.ms_deform_attn
        monkeypatch.setattr(module, "ms_deform_attn", lambda *args, **kwargs: 1.001 * ours(*args, **kwargs))
        self.assert_ends(benchmarks, "ms_deform_attn", "the error of psf's choice")


class TestHalfPrecision:
    def test_pixels_that_differ_do_not_depend_on_the_order_of_ids(self, benchmarks: Benchmarks):
        """Ids 1 and 2 swapped, one of the eight pixels moved from segment to segment: 12.5 %."""
        percent_of_pixels = benchmarks.module("half_precision").percent_of_pixels
        segments = [{"id": 1, "category_id": 3}, {"id": 2, "category_id": 3}]
        expected = (torch.tensor([[0, 1, 1, 1], [0, 2, 2, 2]]), segments)
        found = (torch.tensor([[0, 2, 2, 1], [0, 1, 1, 1]]), segments)
        assert percent_of_pixels([expected], [expected]) == 0
        assert percent_of_pixels([found], [expected]) == 12.5

    def test_another_class_differs(self, benchmarks: Benchmarks):
        """Three of eight pixels; a missing segment differs from void as well."""
        percent_of_pixels = benchmarks.module("half_precision").percent_of_pixels
        ids = torch.tensor([[0, 7, 7, 7], [0, 9, 9, 9]])
        expected = (ids, [{"id": 7, "category_id": 3}, {"id": 9, "category_id": 5}])
        other = (ids, [{"id": 9, "category_id": 5}, {"id": 7, "category_id": 4}])
        missing = (ids * (ids == 9), [{"id": 9, "category_id": 5}])
        assert percent_of_pixels([other], [expected]) == percent_of_pixels([missing], [expected]) == 37.5


class TestKeptBytes:
    def test_what_backward_needs_and_the_output(self, benchmarks: Benchmarks):
        """exp keeps its result, 400 bytes; the sum 4; what was there before does not count."""
        x = torch.zeros(100, requires_grad=True)
        assert benchmarks.module("kept_memory").kept_bytes(lambda: (x.exp() * 2.0).sum()) == 404

    def test_without_gradients_nothing_but_the_output(self, benchmarks: Benchmarks):
        with torch.no_grad():
            assert benchmarks.module("kept_memory").kept_bytes(lambda: torch.ones(100).exp().sum()) == 4


class TestReport:
    def test_names_machine_and_commit_and_appends(self, benchmarks: Benchmarks, capsys: pytest.CaptureFixture[str]):
        module = benchmarks.module("report")
        module.report("something", "a table")
        module.report("something", "another")
        [path] = benchmarks.results.iterdir()
        text = path.read_text()
        assert text.count("UTC, commit ") == 2 and f"torch {torch.__version__}" in text
        assert text.index("a table") < text.index("another")
        assert str(path) in capsys.readouterr().out

    def test_quick_sizes_are_no_results(self, benchmarks: Benchmarks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        module = benchmarks.module("report")
        monkeypatch.delenv("PSF_BENCHMARK_RESULTS")
        monkeypatch.setattr(module, "HERE", tmp_path)
        module.report("something", "a table", quick=True)
        assert not (tmp_path / "results").exists()
        module.report("something", "a table")
        assert (tmp_path / "results").exists()

    def test_targets(self, benchmarks: Benchmarks):
        module = benchmarks.module("report")
        assert (module.against(0.6, 0.6), module.against(0.6, 0.61)) == ("0.6 met", "0.6 MISSED")

    def test_zeros_prove_nothing(self, benchmarks: Benchmarks):
        difference = benchmarks.module("report").difference
        assert difference(torch.zeros(3), torch.zeros(3)) == float("inf")
        assert difference(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 5.0])) == pytest.approx(10**0.5 / 5)


def test_gpu_check_names_what_it_has_not_run(repository: Path):
    """Without any time: each step, by name, and no success."""
    script = repository / "benchmarks" / "gpu_check.sh"
    environment = {**os.environ, "PSF_GPU_DEVICE": "cpu", "PSF_GPU_SECONDS": "0"}
    command = ["bash", str(script), sys.executable]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert found.returncode == 1 and "all passed" not in found.stdout
    [line] = [line for line in found.stderr.splitlines() if line.startswith("gpu-check: not run")]
    steps = {"tests marked gpu, collected", "Triton kernels in the interpreter", "compiled --training"} | ON_A_DEVICE
    assert {name.strip() for name in line.partition("): ")[2].split(";")} - {""} == steps


def test_gpu_check_says_what_is_missing(repository: Path, tmp_path: Path):
    """On a machine without Detectron2 and without the folder of wheels."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")  # imports nothing
    python.chmod(0o755)
    command = ["bash", str(repository / "benchmarks" / "gpu_check.sh"), str(python)]
    environment = {"PATH": "/usr/bin:/bin", "PSF_WHEELS": str(tmp_path / "none")}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert found.returncode == 2
    assert "has no Detectron2" in found.stderr and "collect_wheels.sh" in found.stderr
