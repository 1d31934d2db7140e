"""The command `psf`: its names, what it imports, its exit codes, completion."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import psf
from psf.__main__ import main
from psf.commands import COMMANDS, GROUPS, echo, load_command, run_command
from psf.errors import UserError
from tests.conftest import RunPython


def test_every_module_is_a_command(repository: Path) -> None:
    for group, commands in GROUPS.items():
        folder = repository / "psf" / "commands" / group
        modules = {path.stem for path in folder.glob("*.py")}
        modules |= {path.parent.name for path in folder.glob("*/__init__.py") if group}
        assert {name.replace("-", "_") for name in commands} == modules - {"__init__"}, group
    folders = {path.parent.name for path in (repository / "psf" / "commands").glob("*/__init__.py")}
    assert folders == GROUPS.keys() - {""} and len(COMMANDS) == sum(map(len, GROUPS.values()))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: psf {name} ")
    assert load_command(name).build_parser().description


@pytest.mark.parametrize("words", [["--help"], ["--version"]])
def test_help_and_version_are_quick(run_python: RunPython, words: list[str]) -> None:
    """Under half a second of CPU time, whatever else runs, also where torch and Detectron2 are missing."""
    before = os.times()
    done = run_python("-m", "psf", *words, hidden=["torch", "detectron2"])
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 0.5
    assert done.returncode == 0 and done.stderr == ""
    assert (psf.__version__ if words == ["--version"] else "convert-dataset") in done.stdout


def test_doctor_runs_without_torch(run_python: RunPython) -> None:
    done = run_python("-m", "psf", "doctor", hidden=["torch", "torchvision", "detectron2"])
    assert done.returncode == 1 and "pip install torch torchvision" in done.stdout, done.stderr


@pytest.mark.parametrize("name", ["torch", "detectron2"])
def test_other_commands_need_them(run_python: RunPython, name: str) -> None:
    done = run_python("-m", "psf", "train", "--help", hidden=[name])
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(
        rf"error: psf train cannot start \(.*{name}.*\); .* -m psf doctor` prints the fix\n", done.stderr
    )


@pytest.mark.parametrize(
    ("code", "is_imported"),
    [
        ("from psf.__main__ import main", False),  # pip's script
        ("import psf", True),  # somebody's own program of the same name
    ],
)
def test_only_the_command_imports_lazily(run_python: RunPython, tmp_path: Path, code: str, is_imported: bool) -> None:
    script = tmp_path / "psf"
    script.write_text(f"{code}\nimport sys\nprint('detectron2' in sys.modules)")
    done = run_python(str(script), "-m", "psf")  # a program's own flag
    assert done.stdout.strip() == str(is_imported), done.stderr


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["fly"])
    assert stopped.value.code == 2 and "invalid choice: 'fly'" in capsys.readouterr().err


def test_use_without_detectron2_says_what_to_run(run_python: RunPython) -> None:
    done = run_python("-c", "import psf; print(psf.__version__); psf.add_psf_config", hidden=["detectron2"])
    assert done.stdout.strip() == psf.__version__
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(
        r"ImportError: psf\.add_psf_config cannot be imported \(.*detectron2.*\); .* -m psf doctor` prints the fix",
        last,
    )


@pytest.mark.parametrize("code", ["raise OSError('libcudart.so is missing')", "raise ImportError('undefined symbol')"])
def test_a_broken_torch(run_python: RunPython, tmp_path: Path, code: str) -> None:
    """`import psf` succeeds, as do the names that do without torch; the others name the reason and the way out."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(code)
    use = "import psf; print(psf.model_zoo.get_config_file('Base-PSF.yaml'), psf.UserError); psf.PanopticSegFormer"
    done = run_python("-c", use, path=[tmp_path])
    assert "Base-PSF.yaml" in done.stdout and "UserError" in done.stdout
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(
        r"ImportError: psf\.PanopticSegFormer cannot be imported \((lib|und).*\); .* prints the fix", last
    )


def test_unknown_name_of_the_package() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        psf.nothing  # noqa: B018


def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise UserError("found a, expected b")

    assert run_command(fail) == 2
    assert capsys.readouterr().err == "error: found a, expected b\n"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory\nException"),
    ],
)
def test_a_lack_of_memory_is_one_line(capsys: pytest.CaptureFixture[str], error: Exception) -> None:
    def fail() -> None:
        raise error

    assert run_command(fail) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: not enough memory") and "smaller images" in line


def test_faults_keep_their_traceback() -> None:
    def fail() -> None:
        raise ValueError("of a library")

    with pytest.raises(ValueError, match="of a library"):
        run_command(fail)


@pytest.mark.parametrize(("line", "expected"), [("psf conv", "convert-weights"), ("psf doctor --", "--help")])
def test_completion(line: str, expected: str, tmp_path: Path, repository: Path) -> None:
    """As bash asks for it: the line in the environment, the answer on file descriptor 8."""
    pytest.importorskip("argcomplete")
    answer = tmp_path / "answer"
    environment = {
        **os.environ, "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line, "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
    }  # fmt: skip
    subprocess.run([sys.executable, "-m", "psf"], env=environment, cwd=repository, check=False, timeout=120)
    assert expected in answer.read_text().split()


def test_results_that_the_output_cannot_encode(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    echo("Straße\n道路 \x1b[31m")
    assert raw.getvalue() == b"Stra\\xdfe\n\\u9053\\u8def \\x1b[31m\n"


def test_nobody_reads_the_output(run_python: RunPython) -> None:
    """As in `psf ... | true`: the command does its work, without a word."""
    script = (
        "import logging, os, sys\n"
        "from psf.commands import echo, run_command\n"
        "reading, writing = os.pipe()\n"
        "os.dup2(writing, 1), os.close(reading), os.close(writing)\n"
        "def action():\n"
        "    logging.basicConfig(stream=sys.stdout, level=logging.INFO)\n"
        "    for number in range(3):\n"
        "        echo(100_000 * 'x'), print(100_000 * 'y'), logging.info('z')\n"
        "    sys.stderr.write('done')\n"
        "sys.exit(run_command(action))\n"
    )
    done = run_python("-c", script)
    assert done.returncode == 0 and done.stderr == "done"


@pytest.mark.parametrize("name", ["stdout", "stderr", "stdin"])
def test_closed_streams_change_no_exit_code(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        echo("a result")
        raise UserError("a mistake")

    monkeypatch.setattr(sys, name, None)
    assert run_command(lambda: echo("a result")) == 0
    monkeypatch.setattr(sys, name, None)
    assert run_command(fail) == 2
    monkeypatch.setattr(sys, name, None)
    assert main([]) == 0


def test_closed_descriptors_stay_taken() -> None:
    """A file that is opened later is not the one that messages of C libraries go to."""
    code = "import os, psf.__main__ as p; p.main([]); os.write(3, str(os.open(os.devnull, os.O_RDONLY)).encode())"
    read, write = os.pipe()
    script = f'exec {sys.executable} -c "{code}" 3>&{write} <&- >&- 2>&-'
    assert subprocess.run(["bash", "-c", script], pass_fds=[write], check=False).returncode == 0
    os.close(write)
    with os.fdopen(read) as file:
        assert int(file.read()) > 2
