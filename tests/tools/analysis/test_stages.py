"""Times of the parts add up to the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from psf.commands.evaluating import benchmark
from psf.tools.analysis import measure_stages, peak_memory, stage_table
from tests.model_files import write_model_file
from tests.models import RELEASED, make_input, tiny_model


def test_parts_and_rest_are_the_total() -> None:
    model = tiny_model(RELEASED)
    inputs = [make_input(64, 96, things=1, stuff=1), make_input(50, 70, things=1, stuff=1)]
    times = measure_stages(model, inputs, repeats=1)
    parts = list(times.parts)
    assert parts[:4] == ["backbone", "neck", "pixel_encoder", "location_decoder"]
    assert parts[4:] == ["thing_decoder", "stuff_decoder", "candidates and post-processing"]
    assert all(seconds > 0 for seconds in times.parts.values())
    assert sum(times.parts.values()) == pytest.approx(times.total)
    assert not model.backbone._forward_hooks and not model.neck._forward_pre_hooks
    assert f"{2 / times.total:.2f} images/s" in stage_table(times)
    results: list[object] = []
    handle = model.register_forward_hook(lambda *call: results.append(call[-1]))
    network_only = measure_stages(model, inputs, repeats=1, warm_ups=0, post_processing=False)
    handle.remove()
    assert list(network_only.parts)[-1] == "candidates" and not results


def test_a_model_without_stuff_has_no_such_part() -> None:
    times = measure_stages(
        tiny_model({"NUM_STUFF_CLASSES": 0}), [make_input(64, 64, things=1, stuff=0)], repeats=1, warm_ups=0
    )
    assert "stuff_decoder" not in times.parts and "thing_decoder" in times.parts


def test_peak_memory_grows_with_what_is_allocated() -> None:
    before = peak_memory(torch.device("cpu"), lambda: None)
    after = peak_memory(torch.device("cpu"), lambda: torch.ones(int(before) // 4 + 2**24).sum())
    assert after >= before + 2**26  # bytes


def test_tool(run_python) -> None:
    words = ["--config-file", "shapes/psf_tiny.yaml", "--device", "cpu", "--input-size", "64", "64", "--repeats", "1"]
    done = run_python("-W", "ignore", "-m", "psf", "benchmark", *words)
    assert done.returncode == 0, done.stderr
    assert "| pixel_encoder" in done.stdout and "peak memory" in done.stdout and "images/s" in done.stdout
    assert "deformable attention: bag on cpu" in done.stdout
    assert "| candidates  " in done.stdout and "Random weights: without post-processing" in done.stdout
    wrong = run_python("-W", "ignore", "-m", "psf", "benchmark", *words, "MODEL.PSF.TEST_LAYER", "0")
    assert wrong.returncode == 2 and "TEST_LAYER is 0" in wrong.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "cuda"], "--device: found 'cuda', but torch finds no GPU"),
        (["--device", "gpu"], "--device: expected cpu or cuda, found 'gpu'"),
        (["--repeats", "0"], "argument --repeats: expected a number from 1, found '0'"),
        (["--batch-size", "-1"], "argument --batch-size: expected a number from 1, found '-1'"),
        (["--input-size", "64", "0"], "argument --input-size: expected a number from 1, found '0'"),
        (["--amp", "float16"], "--amp: found float16 with --device cpu; expected bfloat16"),
    ],
)
def test_mistakes(
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(["--config-file", "shapes/psf_tiny.yaml", *words])
    assert stopped.value.code == 2
    [*_, error] = capsys.readouterr().err.strip().splitlines()
    assert f"error: {message}" in error


def test_a_model_file_is_measured_with_its_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model_file, photo = write_model_file(tmp_path), tmp_path / "photo.png"
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(photo)
    words = ["--model", str(model_file), "--image", str(photo), "--device", "cpu", "--repeats", "1"]
    assert benchmark.main(words) == 0
    shown = capsys.readouterr().out
    assert "candidates and post-processing" in shown and "Random weights" not in shown
    assert benchmark.main(["--device", "cpu"]) == 2
    assert "--model or --config-file is missing" in capsys.readouterr().err
    assert benchmark.main(["--config-file", "shapes/psf_tiny.yaml", "--device", "cpu", "--image", str(photo)]) == 2
    assert "--image needs --model" in capsys.readouterr().err
