"""Weights by name: downloaded or put there by hand, checked, converted once, and refused in one line."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from PIL import Image
from torch import nn

import psf
from psf import model_zoo
from psf.commands.models import info
from psf.commands.models import model_zoo as command
from psf.commands.predicting import predict
from psf.data.files import sha256_of
from psf.engine.checkpointer import check_weights
from psf.errors import UserError
from psf.model_zoo import published as module
from psf.model_zoo.names import ALIASES, PUBLISHED, address_of, find
from tests.checkpoint.conftest import released_content
from tests.checkpoint.test_reading import Touch
from tests.model_zoo.site import Site, serving
from tests.models import RELEASED, tiny_config, tiny_model

FILE = "panoptic_segformer_r50_2x.pth"
IN_A_PROCESS = """
import psf
from psf.model_zoo import published
from tests.models import RELEASED, tiny_config
published.get_config = lambda name: tiny_config(RELEASED)
psf.model_zoo.resolve("R50")
"""


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return tiny_model(RELEASED)


@pytest.fixture(scope="module")
def content(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Of the authors' file, if their model were this narrow one."""
    path = tmp_path_factory.mktemp("content") / FILE
    torch.save(released_content(model), path)
    return path.read_bytes()


@pytest.fixture
def site(content: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A mirror."""
    monkeypatch.setattr(module, "get_config", lambda name: tiny_config(RELEASED))
    with serving(content) as one:
        monkeypatch.setenv("PSF_WEIGHTS_URL", f"{one.url}/mirror/")
        yield one


@pytest.fixture
def folder(cache: Path) -> Path:
    (cache / "released").mkdir(parents=True)
    return cache / "released"


def has_weights(path: Path, model: nn.Module) -> bool:
    found, wanted = torch.load(path, weights_only=True)["model"], model.state_dict()
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def refused(message: str, name: str = "R50") -> None:
    with pytest.raises(UserError, match=message) as caught:
        model_zoo.resolve(name)
    assert "\n" not in str(caught.value)


def test_names() -> None:
    assert len({one.file for one in PUBLISHED.values()}) == len(PUBLISHED) == 5
    for name, one in PUBLISHED.items():
        assert Path(model_zoo.get_config_file(one.config)).is_file()
        assert all(find(form) is one for form in (name, name.lower(), one.config, one.address))
        weights = model_zoo.get_config(one.config, trained=True).MODEL.WEIGHTS
        assert weights == model_zoo.get_checkpoint_url(one.config) == f"psf://released/{name}"
    assert all(find(alias) is PUBLISHED[name] for alias, name in ALIASES.items())
    assert find("psf://released/r50") is PUBLISHED["R50_24ep"]
    for name in ("R5O", "coco/psf_R50_24ep.yaml", "", "psf://released/", "../R50"):
        refused("no published weights have the name .*: expected one of R50_12ep, R50_24ep", name)
    refused("did you mean .*Swin-L", "swin")


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PSF_WEIGHTS_URL", raising=False)
    release = "https://github.com/zhiqi-li/Panoptic-SegFormer/releases/download/v1.0"
    assert address_of(find("R50")) == f"{release}/{FILE}"
    for mirror in ("https://host/folder", "http://127.0.0.1:80/folder/"):
        monkeypatch.setenv("PSF_WEIGHTS_URL", mirror)
        assert address_of(find("R50")) == f"{mirror.rstrip('/')}/{FILE}"
    wrong = (
        "folder",
        "file:///x",
        "ftp://host/x",
        "https://",
        "https://me:secret@host/x",
        "https://host/x?y",
        "http://[",
    )
    for mirror in (*wrong, "http://host:port/x", "https://host/a b", "https://host/ä"):
        monkeypatch.setenv("PSF_WEIGHTS_URL", mirror)
        with pytest.raises(UserError, match="PSF_WEIGHTS_URL is not the address of a folder") as caught:
            address_of(find("R50"))
        assert "secret" not in str(caught.value)


def test_a_name_is_enough_to_segment_a_photograph(
    site: Site, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two commands of a new user, without any file but the photograph; a file of that name comes first."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save("photo.png")
    assert predict.main(["--model", "R50", "photo.png", "--device", "cpu", "--output", "out"]) == 0
    assert "1 of 1 images written" in capsys.readouterr().out and Path("out/photo.json").is_file()
    assert [path for path, _ in site.requests] == [f"/mirror/{FILE}"]
    predictor = psf.load("psf://released/R50_24ep", device="cpu")
    assert predictor.path == str(folder / "R50_24ep.pth") and len(predictor.classes) == 7
    assert info.main(["r50"]) == 0 and "usable alone" in capsys.readouterr().out
    Path("R50").write_bytes(b"mine")
    with pytest.raises(UserError, match="R50"):
        psf.load("R50")
    with pytest.raises(UserError, match=r"R5O: no such model file; no published weights .* did you mean R50"):
        psf.load("R5O")


def test_downloaded_and_converted_once(site: Site, folder: Path, model: nn.Module, content: bytes) -> None:
    found = model_zoo.resolve("R50")
    assert found == ("R50_24ep", "coco/released/psf_R50_24ep.yaml", folder / "R50_24ep.pth")
    assert has_weights(found.weights, model) and (folder / FILE).read_bytes() == content
    record = json.loads((folder / f"{FILE}.json").read_text())
    assert record["size"] == len(content) and record["sha256"] == sha256_of(folder / FILE)
    assert set(os.listdir(folder)) == {f".{FILE}.lock", "R50_24ep.pth", FILE, f"{FILE}.json"}
    before = found.weights.stat().st_mtime_ns
    assert model_zoo.resolve("psf://released/R50_24ep") == found and found.weights.stat().st_mtime_ns == before
    assert [path for path, _ in site.requests] == [f"/mirror/{FILE}"]
    (folder / FILE).unlink()  # the converted weights are enough
    assert model_zoo.resolve("R50") == found and len(site.requests) == 1


def test_as_weights_of_a_config(site: Site, model: nn.Module) -> None:
    check_weights("psf://released/R50_24ep")
    assert site.requests == []
    other = build_model(tiny_config(RELEASED))
    DetectionCheckpointer(other).load("psf://released/R50_24ep")
    wanted = model.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize("name", ["psf://released/R5", "psf://other", "psf://"])
def test_a_mistyped_name_is_found_before_the_run(name: str) -> None:
    with pytest.raises(UserError, match=rf'MODEL\.WEIGHTS is "{name}": expected one of .*tf_efficientnet.*R50_24ep'):
        check_weights(name)


def test_a_file_put_there_by_hand(site: Site, folder: Path, model: nn.Module, content: bytes) -> None:
    (folder / FILE).write_bytes(content)
    assert has_weights(model_zoo.resolve("R50").weights, model)
    assert site.requests == [] and (folder / FILE).read_bytes() == content


def test_without_a_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSF_WEIGHTS_URL", "https://psf.invalid/weights")
    refused(
        rf"^https://psf\.invalid/weights/{FILE} cannot be downloaded \([^()]+\): check the network, name a mirror in "
        rf"the variable PSF_WEIGHTS_URL, or put the file at {folder / FILE}$"
    )


def pickled_code(path: Path) -> bytes:
    return pickle.dumps({"state_dict": {"a": Touch(path)}}, protocol=2)


def zipped_code(path: Path) -> bytes:
    torch.save({"meta": Touch(path), "state_dict": {"a": torch.zeros(1)}}, path.with_name("evil.pth"))
    return path.with_name("evil.pth").read_bytes()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (pickled_code, "refused, and nothing in it was executed|damaged"),
        (zipped_code, "refused, and nothing in it was executed"),
        (lambda path: b"<!DOCTYPE html><html>Sign in to the hotel</html>", "an HTML page"),
        (lambda path: b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (lambda path: b"", "the file is empty"),
        (lambda path: b"PK\x03\x04" + bytes(99), "torn or not written by torch.save"),
        (lambda path: b"\x80\x02" + bytes(99), "refused|damaged, or not written by torch.save"),
    ],
)
def test_what_is_no_checkpoint_is_not_kept(
    site: Site, folder: Path, tmp_path: Path, make: Callable[[Path], bytes], message: str, content: bytes
) -> None:
    site.content = make(tmp_path / "executed")
    refused(
        rf"^{site.url}/mirror/{FILE}: .*({message}).*; what has arrived is deleted; .*put the file at {folder / FILE}"
    )
    assert os.listdir(folder) == [f".{FILE}.lock"] and not (tmp_path / "executed").exists()
    (folder / FILE).write_bytes(site.content)  # by hand: it stays
    refused(rf"^{folder / FILE}: .*({message})")
    assert (folder / FILE).read_bytes() == site.content and not (tmp_path / "executed").exists()
    (folder / FILE).unlink()
    site.content = content
    model_zoo.resolve("R50")


def test_bytes_that_changed_on_the_way(site: Site, folder: Path, content: bytes) -> None:
    middle = len(content) // 2
    site.content = content[:middle] + bytes(8) + content[middle + 8 :]
    refused(r"the checksum of .* is wrong; what has arrived is deleted")


def test_another_model(site: Site, folder: Path) -> None:
    for state_dict, message in (
        ({"conv1.weight": torch.zeros(1), "layer1.0.conv1.weight": torch.zeros(1)}, "does not fit the model"),
        ({"a": torch.zeros(1)}, "neither a released Panoptic SegFormer"),
    ):
        torch.save({"state_dict": state_dict}, folder / FILE)
        refused(rf"{message}.*; delete the file to download it again")
    backbone = {name: value for name, value in released_content(tiny_model(RELEASED))["state_dict"].items()}
    backbone = {
        name.removeprefix("backbone."): value for name, value in backbone.items() if name.startswith("backbone.")
    }
    torch.save(backbone, folder / FILE)
    refused(rf"{FILE} is an ImageNet backbone, expected a released Panoptic SegFormer; delete the file")


@pytest.mark.parametrize("change", ["size", "content"])
def test_a_file_that_changed_since_it_was_first_seen(
    site: Site, folder: Path, tmp_path: Path, model: nn.Module, content: bytes, change: str
) -> None:
    weights = model_zoo.resolve("R50").weights
    torch.save(
        released_content(tiny_model(RELEASED, seed=1)), tmp_path / FILE
    )  # the archive has the file's name inside
    other = (tmp_path / FILE).read_bytes()
    is_as_long = len(other) == len(content)
    assert is_as_long
    other += bytes(9) * (change == "size")
    found = (
        rf"{len(other):,} bytes, expected {len(content):,}" if change == "size" else "SHA-256 [0-9a-f]{64}, expected"
    )
    (folder / FILE).write_bytes(other)
    refused(
        rf"^{folder / FILE}: not the file that was first seen here \({found}.*delete {folder / FILE}\.json to accept"
    )
    (folder / FILE).unlink()
    weights.unlink()
    site.content = other  # the server's has changed
    refused(rf"^{site.url}/mirror/{FILE}: not the file that was first seen here \({found}")
    (folder / f"{FILE}.json").unlink()
    if change == "content":
        assert not has_weights(model_zoo.resolve("R50").weights, model)


def test_damaged_weights_are_converted_again(site: Site, folder: Path, model: nn.Module, caplog: Any) -> None:
    weights = model_zoo.resolve("R50").weights
    damaged = bytearray(weights.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    weights.write_bytes(damaged)
    assert has_weights(model_zoo.resolve("R50").weights, model) and len(site.requests) == 1
    assert "its checksum is wrong; converting again" in caplog.text


def test_another_version_converts_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = model_zoo.resolve("R50").weights
    before = weights.stat().st_ino
    monkeypatch.setattr("psf.__version__", "99.0")
    assert model_zoo.resolve("R50").weights.stat().st_ino != before and len(site.requests) == 1


@pytest.mark.parametrize("record", ["[]", "{}", '{"size": "1", "sha256": "", "converted_by": ""}', "{"])
def test_a_damaged_record(site: Site, folder: Path, record: str) -> None:
    (folder / f"{FILE}.json").write_text(record)
    refused(rf"{FILE}\.json(: not a valid JSON file| is not psf's record of {FILE} .*: delete it)")


def test_a_cache_that_cannot_be_written(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PSF_CACHE", str(tmp_path / "file"))
    refused(r"cannot lock .* \(Not a directory\); set the variable PSF_CACHE to a writable folder")


def test_a_link_or_a_folder_in_the_way(site: Site, folder: Path) -> None:
    (folder / FILE).mkdir()
    refused(rf"{FILE}: a folder, expected a regular file")


def test_threads_download_once(site: Site, folder: Path) -> None:
    site.pause = 0.01
    threads = [threading.Thread(target=model_zoo.resolve, args=("R50",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(site.requests) == 1 and (folder / "R50_24ep.pth").is_file()


def started(repository: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    command = [sys.executable, "-W", "ignore", "-c", IN_A_PROCESS]
    return subprocess.Popen(command, cwd=repository, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.01)


def test_two_processes_download_once(site: Site, repository: Path, folder: Path, model: nn.Module, caplog: Any) -> None:
    site.pause, site.piece = 0.05, len(site.content) // 20
    caplog.set_level("INFO", "psf.model_zoo")
    with started(repository) as process:
        wait_for(lambda: site.requests, process)
        assert has_weights(model_zoo.resolve("R50").weights, model)
        assert process.wait(60) == 0
    assert len(site.requests) == 1
    assert "another process prepares R50_24ep: waiting for it" in caplog.text


def test_killed_in_the_middle(site: Site, repository: Path, folder: Path, model: nn.Module, content: bytes) -> None:
    site.pause, site.piece = 0.05, len(site.content) // 20
    part = folder / f"{FILE}.part"
    with started(repository) as process:
        wait_for(lambda: part.exists() and part.stat().st_size > len(content) // 5, process)
        process.send_signal(signal.SIGKILL)
    done = part.stat().st_size
    assert len(content) // 5 < done < len(content) and not (folder / FILE).exists()
    assert has_weights(model_zoo.resolve("R50").weights, model)
    assert site.ranges == [None, f"bytes={done}-"] and (folder / FILE).read_bytes() == content


def test_the_command(site: Site, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["R50", "Nobody"]) == 2
    assert site.requests == [] and "no published weights have the name 'Nobody'" in capsys.readouterr().err
    assert command.main(["R50"]) == 0
    assert f"R50_24ep: {folder / 'R50_24ep.pth'}" in capsys.readouterr().out
    assert command.main([]) == 0
    listed = capsys.readouterr().out
    lines = {line.split()[0]: line for line in listed.splitlines() if line.strip()}
    assert "converted" in lines["R50_24ep"] and lines["R50_24ep"].endswith(f"{site.url}/mirror/{FILE}")
    assert "49.6" in lines["R50_24ep"] and " no " in lines["Swin-L_24ep"] and str(folder) in listed


@pytest.mark.slow
def test_a_model_of_full_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`psf.model_zoo.get` of a real config, with the names of COCO's classes in the converted file."""
    made = model_zoo.get("coco/released/psf_R50_24ep.yaml", device="cpu")
    torch.save(released_content(made), folder / FILE)
    model = model_zoo.get("coco/released/psf_R50_24ep.yaml", trained=True, device="cpu")
    wanted = made.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())
    names = torch.load(folder / "R50_24ep.pth", weights_only=True, mmap=True)["psf_class_names"]
    assert (len(names["things"]), len(names["stuff"])) == (80, 53) and names["things"][0] == "person"
