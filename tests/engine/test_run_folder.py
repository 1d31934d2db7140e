"""The output folder of a run: no training, and no config of the user, is replaced without a word."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.config import CfgNode

from psf.data.own_files import is_own, write_own_text
from psf.engine.run_folder import (
    LOCK_FILE,
    check_run_folder,
    choose_evaluation_folder,
    comment_config_file,
    holds_training,
    lock_folder,
    prepare_run_folder,
    remove_run,
    unlock_folder,
    write_config_file,
)
from psf.errors import UserError
from tests.conftest import REPOSITORY

TRACES = ["model_final.pth", "model_0000009.pth", "last_checkpoint", "metrics.json", "events.out.tfevents.1.host"]


@pytest.mark.parametrize("trace", TRACES[:3])
def test_a_second_training_is_refused_with_three_ways_out(tmp_path: Path, trace: str):
    (tmp_path / trace).write_text("first")
    with pytest.raises(UserError) as error:
        check_run_folder(tmp_path, resume=False, overwrite=False)
    assert all(word in str(error.value) for word in (str(tmp_path), "--resume", "another OUTPUT_DIR", "--overwrite"))
    check_run_folder(tmp_path, resume=True, overwrite=False)
    check_run_folder(tmp_path, resume=False, overwrite=True)


def test_a_training_without_a_checkpoint_is_no_obstacle(tmp_path: Path):
    write_own_text(tmp_path / "config.yaml", "A: 1\n")
    for name in ("metrics.json", "log.txt", "events.out.tfevents.1.host", "model_r50_converted.pth"):
        (tmp_path / name).write_text("[11/28 04:29:47] psf INFO: something")
    check_run_folder(tmp_path, resume=False, overwrite=False)
    check_run_folder(tmp_path / "missing", resume=False, overwrite=False)


def test_overwriting_removes_the_other_run_alone(tmp_path: Path):
    others = ["backbone.pth", "model_best.pth", "notes.txt", "results.json"]
    for name in (*TRACES, *others):
        (tmp_path / name).write_text(name)
    for option in ("", "?matching_heuristics=True"):
        with pytest.raises(UserError, match=r"would remove MODEL\.WEIGHTS"):
            weights = f"{tmp_path / 'model_final.pth'}{option}"
            prepare_run_folder(tmp_path, resume=False, overwrite=True, weights=weights)
    prepare_run_folder(tmp_path, resume=True, overwrite=True, weights=weights)
    prepare_run_folder(tmp_path, resume=False, overwrite=True, weights="none.pth")
    unlock_folder(tmp_path)
    assert all((tmp_path / name).is_file() for name in TRACES)  # until the new run can start
    remove_run(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(others)


def test_a_config_of_the_user_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    config = tmp_path / "config.yaml"
    config.write_text("# my notes\n")
    with pytest.raises(UserError, match=r"config\.yaml exists, and psf has not written it.*--overwrite"):
        check_run_folder(tmp_path, resume=False, overwrite=False)
    check_run_folder(tmp_path, resume=True, overwrite=False)
    for value in (1, 2):
        write_config_file(CfgNode({"OUTPUT_DIR": str(tmp_path), "A": value}))
    assert config.read_text() == "# my notes\n" and "A: 2" in (tmp_path / "config_2.yaml").read_text()
    assert f"writing {tmp_path / 'config_2.yaml'}" in caplog.text
    prepare_run_folder(tmp_path, resume=False, overwrite=True, weights="")
    unlock_folder(tmp_path)
    assert config.read_text() == "# my notes\n" and not is_own(config)  # until it is replaced
    write_config_file(CfgNode({"OUTPUT_DIR": str(tmp_path)}), overwrite=True)
    assert is_own(config)
    check_run_folder(tmp_path, resume=False, overwrite=False)


def test_each_evaluation_has_a_folder(tmp_path: Path):
    """The same config gets the same folder again; another one does not replace its results."""
    cfg = CfgNode({"OUTPUT_DIR": str(tmp_path), "WEIGHTS": "a.pth"})
    other = CfgNode({"OUTPUT_DIR": str(tmp_path), "WEIGHTS": "b.pth"})
    for number, (one, name) in enumerate([(cfg, "evaluation"), (other, "evaluation_2"), (cfg, "evaluation")]):
        folder = choose_evaluation_folder(one, "evaluation")
        assert folder == tmp_path / name, number
        (folder / "config.yaml").parent.mkdir(exist_ok=True)
        write_own_text(folder / "config.yaml", CfgNode({**one, "OUTPUT_DIR": str(folder)}).dump())
    (tmp_path / "evaluation" / "config.yaml").write_text("edited")
    assert choose_evaluation_folder(cfg, "evaluation") == tmp_path / "evaluation_3"
    assert is_own(tmp_path / "evaluation_2" / "config.yaml")


def test_comments_of_a_config(tmp_path: Path):
    cfg = CfgNode({"OUTPUT_DIR": str(tmp_path / "evaluation"), "A": "x\n# no comment: it is\nindented", "B": "# b"})
    (tmp_path / "evaluation").mkdir()
    config = tmp_path / "evaluation" / "config.yaml"
    comment_config_file(config.parent, ["a run without a file"])
    assert not config.exists()
    write_config_file(cfg)
    for comments in (["one: [", "two"], ["three"]):
        comment_config_file(config.parent, comments)
        assert config.read_text() == cfg.dump() + "".join(f"# {comment}\n" for comment in comments)
        assert CfgNode.load_cfg(config.read_text()) == cfg and is_own(config)
        parent = CfgNode({**cfg, "OUTPUT_DIR": str(tmp_path)})
        assert choose_evaluation_folder(parent, "evaluation") == config.parent  # the same config
    edited = config.read_text() + "# of the user\n"
    config.write_text(edited)
    comment_config_file(config.parent, ["four"])
    assert config.read_text() == edited


HOLD = """
import sys, time
from pathlib import Path
from psf.engine.run_folder import lock_folder
lock_folder(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(100)
"""


def test_a_lock_lasts_as_long_as_its_process(tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "locked\n"
        assert holds_training(tmp_path)
        for check in (lock_folder, lambda folder: check_run_folder(folder, resume=True, overwrite=True)):
            with pytest.raises(UserError, match=rf"process {owner.pid} on .* trains there"):
                check(tmp_path)
        owner.send_signal(signal.SIGKILL)
    assert (tmp_path / LOCK_FILE).is_file() and not holds_training(tmp_path)
    lock_folder(tmp_path)  # of a dead process
    lock_folder(tmp_path)  # this process's own
    assert f"process {os.getpid()} on " in (tmp_path / LOCK_FILE).read_text()
    unlock_folder(tmp_path)
    assert not (tmp_path / LOCK_FILE).exists()


STREAMS = ["log.txt", "log.txt.rank1", "metrics.json", "metrics_2.json", "last_checkpoint", ".psf-files", LOCK_FILE]


@pytest.mark.parametrize("name", [*STREAMS, "model_final.pth", "model_0000009.pth"])
@pytest.mark.parametrize("kind", ["folder", "link", "broken link", "pipe"])
def test_only_regular_files_are_written_or_removed(tmp_path: Path, name: str, kind: str):
    file, theirs = tmp_path / "output" / name, tmp_path / "theirs.txt"
    file.parent.mkdir()
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to(theirs)
    if kind == "link":
        theirs.write_text("mine")
    if "link" in kind and name.startswith("model_"):
        prepare_run_folder(file.parent, resume=False, overwrite=True, weights="")
        remove_run(file.parent)
        unlock_folder(file.parent)
    else:
        for flags in ({"resume": True, "overwrite": False}, {"resume": False, "overwrite": True}):
            with pytest.raises(UserError, match=rf"{re.escape(name)}\b"):
                prepare_run_folder(file.parent, **flags, weights="")
        assert os.path.lexists(file)
    assert theirs.exists() == (kind == "link") and (kind != "link" or theirs.read_text() == "mine")


@pytest.mark.parametrize("name", ["log.txt", "log.txt.rank1", LOCK_FILE])
def test_text_of_the_user_stays(tmp_path: Path, name: str):
    (tmp_path / name).write_text("my notes\n")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=rf"{re.escape(name)} is not the lo.*: move it away"):
            prepare_run_folder(tmp_path, resume=False, overwrite=overwrite, weights="")
    assert (tmp_path / name).read_text() == "my notes\n" and len(list(tmp_path.iterdir())) == 1


def test_a_link_to_itself_is_no_folder(tmp_path: Path):
    folder = tmp_path / "loop"
    folder.symlink_to(folder)
    check_run_folder(folder, resume=False, overwrite=False)
    unlock_folder(folder)
    with pytest.raises(UserError, match="cannot be opened"):
        lock_folder(folder)
