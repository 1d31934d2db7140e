"""`psf serve`: arguments, mistakes, and a server in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from psf.commands import COMMANDS
from psf.commands.predicting.serve import build_parser, main
from tests.conftest import REPOSITORY, RunPython
from tests.model_files import write_model_file
from tests.prediction.conftest import model_file  # noqa: F401


def test_help_loads_nothing_of_the_server(run_python: RunPython) -> None:
    code = (
        "import sys; from psf.commands.predicting.serve import build_parser; build_parser().format_help(); "
        "print([name for name in ('fastapi', 'uvicorn', 'psf.tools.serving', 'psf.prediction') if name in sys.modules])"
    )
    assert run_python("-c", code).stdout.splitlines()[-1] == "[]"


def test_defaults_are_those_of_the_limits() -> None:
    limits = pytest.importorskip("psf.tools.serving", reason="needs the extra serve").Limits()
    args = build_parser().parse_args(["--model", "m.pth"])
    assert (args.max_megabytes * 10**6, args.max_megapixels * 10**6) == (limits.max_bytes, limits.max_pixels)
    assert args.kept_megabytes * 10**6 == limits.max_kept_bytes
    for name in ("max_queue", "queue_seconds", "upload_seconds", "max_connections", "shutdown_seconds"):
        assert getattr(args, name) == getattr(limits, name), name
    assert (args.host, args.port) == ("127.0.0.1", 8000) and "serve" in COMMANDS


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client", "python_multipart"])
def test_missing_package(package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == package else find_spec(name, *a))
    assert main(["--model", "m.pth"]) == 2
    assert capsys.readouterr().err == f"error: psf serve needs {package}: pip install 'panoptic-segformer[serve]'\n"


def test_mistakes(model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    pytest.importorskip("fastapi", reason="fastapi comes with the extra serve")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["--model", str(model_file), "--port", port]) == 2
    assert capsys.readouterr().err.startswith(f"error: cannot listen at 127.0.0.1 port {port} (Address already in use)")
    assert main(["--model", "/no/such.pth", "--port", "0"]) == 2
    assert "/no/such.pth" in capsys.readouterr().err
    for words in (["--max-queue", "-1"], ["--queue-seconds", "0"], ["--port", "x"], ["--kept-megabytes", "nan"]):
        with pytest.raises(SystemExit):
            main(["--model", "m.pth", *words])
        assert f"argument {words[0]}: expected a number from" in capsys.readouterr().err


def test_sets_of_a_config(
    model_file: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("fastapi", reason="fastapi comes with the extra serve")
    words = ["--model", str(model_file), "--port", "0", "--device", "cpu", "--register", "wrong"]
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("error: --register needs --config-file")
    assert main([*words, "--config-file", "small/psf_small.yaml"]) == 2
    assert "found 'wrong', expected NAME=JSON,PNGS,IMAGES" in capsys.readouterr().err


def test_serve(tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="fastapi comes with the extra serve")
    path = write_model_file(tmp_path)
    command = [sys.executable, "-m", "psf", "serve", "--model", str(path), "--port", "0", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=tmp_path, env=environment, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("model_final.pth at http://127.0.0.1:"), line
        with urllib.request.urlopen(f"{line.split()[2]}/healthz", timeout=30) as reply:
            assert reply.status == 200
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "stopped, after 0 images\n"
    assert process.returncode == 0
