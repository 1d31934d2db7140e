"""Which implementation runs: by what is asked for, device and size, or measured; each choice is logged once."""

from __future__ import annotations

import importlib.util
import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from psf.errors import UserError
from psf.ops import (
    check_implementation,
    describe_implementation,
    dispatch,
    measured_choices,
    measurement,
    ms_deform_attn,
    operator,
    used_implementations,
)
from psf.ops.dispatch import Work, choose
from psf.ops.measurement import Measurement, Problem
from tests.ops.problems import problem

LOGGERS = ("psf.ops.dispatch", "psf.ops.measured_choices")


@pytest.fixture(autouse=True)
def new_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever the environment of these tests asks for, and whatever other tests have measured."""
    monkeypatch.delenv("PSF_MSDA", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("PSF_CACHE", str(tmp_path / "cache"))
    forget(monkeypatch)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_known", {})
    monkeypatch.setattr(dispatch, "_used", {})
    measured_choices._warn_once.cache_clear()


def work(device: str = "cpu", queries: int = 10, **others: Any) -> Work:
    """A call with one point per query, and few tokens."""
    sizes = {"batch": 1, "queries": queries, "tokens": 10, "heads": 1, "dim": 2, "levels": 1, "points": 1}
    types = {"dtype": torch.float32, "weights_dtype": torch.float32}
    flags = {"has_gradient": False, "is_deterministic": False, "can_measure": True}
    return Work(torch.device(device), **{**types, **sizes, **flags, **others})


def messages(caplog: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name in LOGGERS and record.levelno == level]


class TestNamedOrByRule:
    @pytest.mark.parametrize(
        ("device", "queries", "has_gradient", "is_deterministic", "name"),
        [
            ("cpu", 10**6, False, False, "bag"),
            ("cpu", 10**6, True, True, "bag"),
            ("cpu", 1000, False, False, "reference"),
            ("cpu", 16_000, False, False, "bag"),
            ("cpu", 15_999, False, False, "reference"),
            ("cpu", 31_999, True, False, "reference"),
            ("cpu", 32_000, True, False, "bag"),
            ("cuda", 10**6, True, True, "bag"),
            ("cuda", 10**6, False, True, "reference"),
            ("mps", 10**6, True, True, "reference"),
        ],
    )
    def test_default(self, monkeypatch, device, queries, has_gradient, is_deterministic, name):
        monkeypatch.setattr(dispatch, "measure", None)  # nothing may be measured
        found = choose(work(device, queries, has_gradient=has_gradient, is_deterministic=is_deterministic))
        assert found.name == name

    def test_points_of_an_image_are_queries_x_heads_x_levels_x_points(self):
        assert choose(work(queries=1000, heads=4, levels=2, points=2, batch=1)).name == "bag"  # 16 000
        assert choose(work(queries=999, heads=4, levels=2, points=2, batch=9)).name == "reference"

    def test_argument_then_environment_then_key_then_the_fastest(self, monkeypatch):
        assert choose(work(), configured="bag") == ("bag", "set by the key MODEL.PSF.MSDA")
        monkeypatch.setenv("PSF_MSDA", "bag")
        assert choose(work()) == ("bag", "set by the environment variable PSF_MSDA")
        assert choose(work(), configured="reference").name == "bag"
        assert choose(work(), "reference", configured="bag") == ("reference", "set by the argument implementation")
        assert choose(work(), "auto", configured="bag").reason.startswith("the fastest on a CPU")
        monkeypatch.setenv("PSF_MSDA", "auto")
        assert choose(work(), configured="bag").reason.startswith("the fastest on a CPU")
        monkeypatch.setenv("PSF_MSDA", "")
        assert choose(work()).name == "reference"

    def test_wishes_that_cannot_be_met_are_errors(self, monkeypatch):
        with pytest.raises(
            ValueError, match="argument implementation is 'cuda'; known implementations: auto, reference, bag, triton"
        ):
            choose(work(), "cuda")
        with pytest.raises(ValueError, match="'bag', which runs on cpu and cuda, but the device is mps"):
            choose(work("mps"), "bag")
        with pytest.raises(ValueError, match="'reference', whose gradients are not deterministic on a GPU; use 'bag'"):
            choose(work("cuda", has_gradient=True, is_deterministic=True), "reference")
        assert choose(work("cuda", is_deterministic=True), "reference").name == "reference"
        with pytest.raises(ValueError, match=r"key MODEL\.PSF\.MSDA is 'triton', which runs on cuda|not installed"):
            choose(work(), configured="triton")
        monkeypatch.setenv("PSF_MSDA", "grid_sample")
        with pytest.raises(ValueError, match="environment variable PSF_MSDA is 'grid_sample'; known"):
            ms_deform_attn(*problem(1, [(2, 2)]))
        assert "PSF_MSDA is 'grid_sample'" in describe_implementation()

    def test_early_check(self, monkeypatch):
        check_implementation("cpu", "bag")
        with pytest.raises(UserError, match=r"the key MODEL\.PSF\.MSDA is 'bag', .* the device is mps; use 'auto'"):
            check_implementation("mps", "bag")
        monkeypatch.setenv("PSF_MSDA", "auto")
        check_implementation("mps", "bag")  # the variable counts
        monkeypatch.setenv("PSF_MSDA", "fast")
        with pytest.raises(UserError, match="the environment variable PSF_MSDA is 'fast'"):
            check_implementation("cpu")

    def test_triton_is_optional(self, monkeypatch):
        find_spec = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else find_spec(name))
        with pytest.raises(ValueError, match="the package triton is not installed: pip install triton"):
            choose(work("cuda"), "triton")

    @pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
    def test_triton_needs_a_gpu(self):
        assert choose(work("cuda", has_gradient=True, is_deterministic=True), "triton").name == "triton"
        with pytest.raises(ValueError, match="'triton', which runs on cuda, but the device is cpu"):
            choose(work(), "triton")

    def test_importing_psf_does_not_import_triton(self, run_python):
        code = "import sys, psf.ops; sys.exit('psf.ops.triton_kernels' in sys.modules)"
        assert run_python("-c", code, hidden=["triton"]).returncode == 0

    def test_each_choice_is_logged_once(self, caplog):
        inputs = problem(2, [(2, 3)])
        with caplog.at_level(logging.INFO):
            for implementation in (None, "bag", None, "bag"):
                ms_deform_attn(*inputs, implementation=implementation)
        assert messages(caplog) == used_implementations()
        assert used_implementations() == [
            "deformable attention: reference (the fastest on a CPU below 16000 points per image)",
            "deformable attention: bag (set by the argument implementation)",
        ]

    def test_description(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert describe_implementation() == "bag on cpu: the fastest on a CPU from 16000 points per image"
        assert describe_implementation(configured="reference") == "reference on cpu: set by the key MODEL.PSF.MSDA"
        assert describe_implementation("cuda") == "on cuda: the fastest, measured at the first call"
        assert describe_implementation("cuda", "bag") == "bag on cuda: set by the key MODEL.PSF.MSDA"

    def test_description_with_a_gpu(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert describe_implementation("cpu").startswith("bag on cpu: ")
        monkeypatch.setattr(dispatch, "_with_index", lambda device: torch.device("cuda", 0))
        monkeypatch.setattr(dispatch, "describe_environment", lambda device: "A GPU, driver 1")
        times = {"reference": 3.0, "bag": 9.0, "triton": 0.5}
        monkeypatch.setattr(dispatch, "measure", lambda *args: Measurement(times, {}))
        found = describe_implementation()
        assert found.startswith("triton on cuda: triton 0.5 ms, reference 3 ms, bag 9 ms; float32, 8 heads x 32, ")
        assert found.endswith("; A GPU; measured now")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Problem]:
    """The CPU stands in for a GPU; here are the problems that were measured. Times are those of `set_times`."""
    found: list[Problem] = []
    measure = dispatch.measure

    def recorded(problem: Problem, device: torch.device, names: list[str]) -> Measurement:
        found.append(problem)
        return measure(problem, device, names)

    monkeypatch.setattr(dispatch, "MEASURED", ("cuda", "cpu"))
    monkeypatch.setattr(dispatch, "measure", recorded)
    set_times(monkeypatch, reference=3.0, bag=2.0)
    return found


def set_times(monkeypatch: pytest.MonkeyPatch, **milliseconds: float) -> None:
    monkeypatch.setattr("psf.ops.measurement._milliseconds", lambda inputs, name: milliseconds[name])


def cached(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "cache" / "deformable_attention.json").read_text())


class TestMeasured:
    @pytest.mark.parametrize(("reference", "bag", "name"), [(3.0, 2.0, "bag"), (2.0, 3.0, "reference")])
    def test_the_fastest_is_taken_and_kept(self, calls, monkeypatch, caplog, reference, bag, name):
        set_times(monkeypatch, reference=reference, bag=bag)
        inputs = problem(1, [(3, 4)])
        with caplog.at_level(logging.INFO):
            first = ms_deform_attn(*inputs)
            set_times(monkeypatch, reference=bag, bag=reference)
            assert torch.equal(ms_deform_attn(*inputs), first)
        assert len(calls) == 1
        times = ", ".join(sorted((f"reference {reference:g} ms", f"bag {bag:g} ms"), key=lambda x: x.split()[1]))
        kind = "float64, 3 heads x 2, 1 levels x 2 points, 256 queries, 256 tokens, without gradients"
        assert messages(caplog) == [f"deformable attention: {name} ({times}; {kind}; cpu; measured now)"]
        assert torch.equal(first, ms_deform_attn(*inputs, implementation=name))

    def test_each_class_is_measured_once(self, calls):
        def run(queries: int, dtype: torch.dtype = torch.float32, **flags: Any) -> None:
            choose(work(queries=queries, dtype=dtype, **flags))

        run(10)
        run(256)
        assert len(calls) == 1
        run(257)
        run(1024)
        assert len(calls) == 2
        run(10, torch.bfloat16)  # as under autocast, where the weights are in float32
        assert str(calls[-1]).startswith("bfloat16 with float32 weights, 1 heads x 2, ")
        run(10, has_gradient=True)
        run(10, heads=2)
        assert len(calls) == 5
        run(200, batch=2)  # 400 queries
        assert len(calls) == 5
        run(10, tokens=257)
        assert len(calls) == 6 and (calls[-1].queries, calls[-1].tokens) == (256, 1024)
        run(10, tokens=512, batch=2)
        assert len(calls) == 6

    def test_a_location_decoder_is_measured_with_more_tokens_than_queries(self, calls):
        sizes = {"heads": 8, "dim": 32, "levels": 3, "points": 4}
        for queries in (300, 19_950):
            choose(work(queries=queries, tokens=19_950, **sizes))
        decoder, encoder = (measurement._Inputs.random(one, torch.device("cpu")) for one in calls)
        assert [len(x.value[0]) for x in (decoder, encoder)] == [2708, 2708]  # bounded by the memory
        assert [len(x.weights[0]) for x in (decoder, encoder)] == [512, 2730]

    def test_a_wrong_one_is_refused(self, calls, monkeypatch, caplog, tmp_path):
        right = operator.bag_forward
        monkeypatch.setattr(operator, "bag_forward", lambda *inputs: 1.01 * right(*inputs))
        choice = choose(work())
        assert choice.name == "reference"
        (warning,) = messages(caplog, logging.WARNING)
        assert "bag wrong: its output differs from the reference by 1.0e-02 of the largest number; reference" in warning
        choose(work())
        assert len(messages(caplog, logging.WARNING)) == 1
        assert not (tmp_path / "cache").exists()  # the next process tries again

    def test_a_wrong_gradient_is_refused_where_it_is_needed(self, calls, monkeypatch, caplog):
        right = operator.bag_backward

        def wrong(*inputs: Any) -> Any:
            value, locations, weights = right(*inputs)
            return value, torch.full_like(locations, torch.nan), weights

        monkeypatch.setattr(operator, "bag_backward", wrong)
        assert choose(work()).name == "bag"
        assert choose(work(has_gradient=True)).name == "reference"
        assert "gradient of the locations differs from the reference by nan" in messages(caplog, logging.WARNING)[0]

    @pytest.mark.parametrize("error", [RuntimeError("no\ncompiler"), torch.OutOfMemoryError("too large")])
    def test_a_failing_one_gives_one_warning_and_the_reference(self, calls, monkeypatch, caplog, error):
        def fail(*inputs: Any) -> Any:
            raise error

        monkeypatch.setattr(operator, "bag_forward", fail)
        inputs = problem(1, [(3, 4)])
        expected = ms_deform_attn(*inputs, implementation="reference")
        for _ in range(2):
            assert torch.equal(ms_deform_attn(*inputs), expected)
        (warning,) = messages(caplog, logging.WARNING)
        assert f"bag fails: {type(error).__name__}: {' '.join(str(error).split())}; reference runs instead" in warning

    def test_one_that_fails_while_it_is_timed(self, calls, monkeypatch, caplog):
        def fail(inputs: Any, name: str) -> float:
            if name == "bag":
                raise torch.OutOfMemoryError("later")
            return 9.0

        monkeypatch.setattr("psf.ops.measurement._milliseconds", fail)
        assert choose(work()).name == "reference"
        assert "OutOfMemoryError: later" in messages(caplog, logging.WARNING)[0]

    def test_no_memory_at_all(self, calls, monkeypatch, caplog):
        def fail(*inputs: Any) -> Any:
            raise torch.OutOfMemoryError("nothing left")

        monkeypatch.setattr("psf.ops.measurement._Inputs.random", fail)
        assert choose(work()).name == "reference"
        assert len(messages(caplog, logging.WARNING)) == 1

    def test_two_threads_measure_once(self, calls, monkeypatch):
        inside, go = threading.Event(), threading.Event()

        def wait(inputs: Any, name: str) -> float:
            inside.set()
            assert go.wait(20)
            return 1.0

        monkeypatch.setattr("psf.ops.measurement._milliseconds", wait)
        found: list[str] = []
        threads = [threading.Thread(target=lambda: found.append(choose(work()).name)) for _ in range(2)]
        threads[0].start()
        assert inside.wait(20)
        threads[1].start()
        go.set()
        for thread in threads:
            thread.join(20)
        assert len(calls) == 1 and found == ["reference", "reference"]

    def test_deterministic_mode_does_not_measure(self, calls):
        assert choose(work(is_deterministic=True, has_gradient=True)).name == "bag"
        assert choose(work(is_deterministic=True)).name == "reference"
        assert not calls

    def test_what_is_named_is_not_measured(self, calls, monkeypatch):
        choose(work(), configured="reference")
        monkeypatch.setenv("PSF_MSDA", "reference")
        choose(work())
        assert not calls

    def test_changes_no_state_of_the_program(self, calls):
        """Within no_grad, inference mode, autocast and a mode that sees every function, on a step with gradients."""
        seen: list[str] = []

        class Mode(torch.overrides.TorchFunctionMode):
            def __torch_function__(self, func, types, args=(), kwargs=None):
                seen.append(func.__name__)
                return func(*args, **(kwargs or {}))

        before = torch.random.get_rng_state()
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16), Mode():
            assert choose(work(has_gradient=True)).name == "bag"
            assert torch.is_inference_mode_enabled() and torch.is_autocast_enabled("cpu")
        assert calls and "grid_sampler" not in seen and "rand" not in seen
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_neither_compiling_nor_tracing_measures(self, calls):
        inputs = problem(3, [(3, 4)])
        torch.compiler.reset()
        for dynamic in (False, True):
            compiled = torch.compile(ms_deform_attn, fullgraph=True, backend="eager", dynamic=dynamic)
            torch.testing.assert_close(compiled(*inputs), ms_deform_attn(*inputs, implementation="reference"))
        fake = torch._subclasses.FakeTensorMode()
        ms_deform_attn(*(fake.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in inputs))
        assert not calls

    @pytest.mark.parametrize("dynamic", [False, True])
    def test_a_graph_takes_what_was_measured_before(self, calls, dynamic):
        graphs = []

        def keep(graph: Any, example_inputs: Any) -> Any:
            graphs.append(graph)
            return graph.forward

        inputs = problem(3, [(3, 4)])
        ms_deform_attn(*inputs)
        torch.compiler.reset()
        torch.compile(ms_deform_attn, fullgraph=True, backend=keep, dynamic=dynamic)(*inputs)
        assert len(calls) == 1
        assert any("ms_deform_attn" in str(node.target) for node in graphs[0].graph.nodes)


class TestCacheFile:
    def test_a_second_process_reads_it(self, calls, monkeypatch, caplog, tmp_path):
        choose(work())
        (times,) = (times for problems in cached(tmp_path)["milliseconds"].values() for times in problems.values())
        assert times == {"reference": 3.0, "bag": 2.0}
        forget(monkeypatch)
        choice = choose(work())
        assert len(calls) == 1 and choice.name == "bag"
        assert choice.reason.endswith(f"measured earlier: {tmp_path / 'cache' / 'deformable_attention.json'}")
        choose(work(has_gradient=True))
        (problems,) = cached(tmp_path)["milliseconds"].values()
        assert len(problems) == 2 and not messages(caplog, logging.WARNING)

    def test_another_environment_measures_again(self, calls, monkeypatch, tmp_path):
        choose(work())
        forget(monkeypatch)
        monkeypatch.setattr(dispatch, "describe_environment", lambda device: "another GPU, driver 2")
        choose(work())
        assert len(calls) == 2 and len(cached(tmp_path)["milliseconds"]) == 2

    def test_another_set_of_implementations_measures_again(self, calls, monkeypatch):
        choose(work())
        forget(monkeypatch)
        monkeypatch.setattr(dispatch, "IMPLEMENTATIONS", ("reference",))
        assert choose(work()).name == "reference"
        assert len(calls) == 2

    def test_the_environment_names_all_that_counts(self):
        found = measured_choices.describe_environment(torch.device("cpu"))
        for part in ("cpu, driver ", f"torch {torch.__version__}", "triton ", "psf "):
            assert part in found

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{",
            b"\xff\xfe",
            b"[]",
            b'{"format": 2, "milliseconds": {}}',
            b'{"format": 1}',
            b'{"format": 1, "milliseconds": {"a": 1}}',
            b'{"format": 1, "milliseconds": {"a": {"b": {"bag": -1}}}}',
            b'{"format": 1, "milliseconds": {"a": {"b": {"bag": NaN}}}}',
            b'{"format": 1, "milliseconds": {"a": {"b": {"bag": "fast"}}}}',
            b'{"format": 1, "milliseconds": {"a": {"b": {"bag": 1' + 400 * b"0" + b"}}}}",  # no float is as large
            100_000 * b"[",
            b" " * (2**20 + 1),
        ],
    )
    def test_damaged_and_foreign_files_are_written_anew(self, calls, monkeypatch, caplog, tmp_path, content):
        file = tmp_path / "cache" / "deformable_attention.json"
        file.parent.mkdir()
        file.write_bytes(content)
        assert choose(work()).name == "bag"
        (warning,) = messages(caplog, logging.WARNING)
        assert warning.startswith(f"{file} is no cache of measurements (") and "\n" not in warning
        assert cached(tmp_path)["format"] == 1
        forget(monkeypatch)
        choose(work())
        assert len(calls) == 1

    def test_folders_that_cannot_be_written(self, calls, monkeypatch, caplog, tmp_path):
        (tmp_path / "file").touch()
        for cache in (tmp_path / "file" / "cache", "~no-such-user/cache", tmp_path / (300 * "x")):
            monkeypatch.setenv("PSF_CACHE", str(cache))
            forget(monkeypatch)
            assert choose(work()).name == "bag"
        (tmp_path / "cache" / "deformable_attention.json").mkdir(parents=True)  # in the file's place
        monkeypatch.setenv("PSF_CACHE", str(tmp_path / "cache"))
        forget(monkeypatch)
        assert choose(work()).name == "bag"
        assert not messages(caplog, logging.WARNING)
