"""Checkpoints are whole or absent, damage is found, and a run is resumed from the newest sound one."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from psf.checkpoint import newest_sound_checkpoint, write_checkpoint
from psf.checkpoint.saving import find_damage
from psf.errors import UserError


def content(iteration: int = 3, weight: float = 1.0) -> dict[str, Any]:
    model = {"weight": torch.full((50, 20), weight), "bias": torch.zeros(20)}
    step = {"optimizer": {"state": {0: {"moment": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}}
    return {"model": model, "trainer": {"iteration": iteration, "_trainer": step}, "iteration": iteration}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_checkpoint(content(), tmp_path / "model.pth")
    return tmp_path / "model.pth"


class TestFile:
    def test_torch_reads_it(self, path: Path):
        assert find_damage(path) is None
        for mmap in (False, True):
            assert torch.load(path, weights_only=True, mmap=mmap)["iteration"] == 3
        assert list(path.parent.iterdir()) == [path]

    @pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.8, 0.99])
    def test_a_flipped_bit_anywhere_is_found(self, path: Path, share: float):
        data = bytearray(path.read_bytes())
        data[int(share * len(data))] ^= 0x10
        path.write_bytes(data)
        assert find_damage(path) == "its checksum is wrong"

    @pytest.mark.parametrize("size", [1, 100, -1, -200])
    def test_a_torn_file_is_found(self, path: Path, size: int):
        path.write_bytes(path.read_bytes()[:size])
        assert "torn" in (find_damage(path) or "")

    def test_empty_and_missing(self, tmp_path: Path):
        (tmp_path / "a.pth").touch()
        assert find_damage(tmp_path / "a.pth") == "empty"
        assert find_damage(tmp_path / "b.pth") == "missing"

    def test_files_of_others_are_checked_by_their_tensors(self, tmp_path: Path):
        torch.save(content(), tmp_path / "a.pth")
        assert find_damage(tmp_path / "a.pth") is None
        data = bytearray((tmp_path / "a.pth").read_bytes())
        start = data.index(torch.full((2,), 1.0).numpy().tobytes())
        data[start + 100] ^= 1
        (tmp_path / "a.pth").write_bytes(data)
        assert "checksum of" in (find_damage(tmp_path / "a.pth") or "")

    def test_a_failure_leaves_the_file_before(self, path: Path, monkeypatch: pytest.MonkeyPatch):
        def fill_disk(content: Any, file: Any) -> None:
            file.write(b"half")
            raise OSError(28, "No space left on device")

        before = path.read_bytes()
        monkeypatch.setattr(torch, "save", fill_disk)
        with pytest.raises(OSError, match="No space"):
            write_checkpoint(content(4), path)
        assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="a limit on file sizes cannot be lifted again")
    @pytest.mark.parametrize("missing", [3000, 500])
    def test_a_limit_on_file_sizes_is_an_os_error(self, path: Path, missing: int):
        """Also where only torch's last bytes are missing."""
        limit = path.stat().st_size - missing
        child = os.fork()
        if not child:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                write_checkpoint(content(4), path)
            except OSError as error:
                os._exit(error.errno or 0)
            finally:
                os._exit(255)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 27  # EFBIG
        assert find_damage(path) is None and list(path.parent.iterdir()) == [path]


class TestNewest:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """Three checkpoints; the last is named by the tag."""
        for iteration in (1, 2, 3):
            write_checkpoint(content(iteration), tmp_path / f"model_{iteration:07d}.pth")
        (tmp_path / "last_checkpoint").write_text("model_0000003.pth")
        return tmp_path

    def test_the_tag_decides(self, folder: Path):
        (folder / "last_checkpoint").write_text("model_0000002.pth")
        found = newest_sound_checkpoint(folder)
        assert found is not None and found.content["iteration"] == 2 and not found.refused

    @pytest.mark.parametrize("damage", ["torn", "flipped", "missing", "empty", "NaN", "NaN moment"])
    def test_damage_is_named_and_the_one_before_is_taken(self, folder: Path, damage: str):
        path = folder / "model_0000003.pth"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        bad = {"NaN": content(3, float("nan")), "NaN moment": content(3)}
        bad["NaN moment"]["trainer"]["_trainer"]["optimizer"]["state"][0]["moment"][1] = float("nan")
        if damage in bad:
            write_checkpoint(bad[damage], path)
        elif damage == "missing":
            path.unlink()
        else:
            path.write_bytes({"torn": data[:500], "flipped": data, "empty": b""}[damage])
        found = newest_sound_checkpoint(folder)
        assert found is not None and found.path == folder / "model_0000002.pth"
        [reason] = found.refused
        assert reason.startswith(f"{path}: ") and "\n" not in reason

    def test_infinity_counts_in_parameters_only(self, folder: Path):
        write_checkpoint(content(3, float("inf")), folder / "model_0000003.pth")
        for parameters, iteration in (((), 3), (("weight",), 2)):
            found = newest_sound_checkpoint(folder, parameters)
            assert found is not None and found.content["iteration"] == iteration

    @pytest.mark.parametrize("tag", [None, "", "\0\0\0"])
    def test_without_a_tag_the_newest_is_taken(self, folder: Path, tag: str | None):
        (folder / "last_checkpoint").unlink()
        if tag is not None:
            (folder / "last_checkpoint").write_text(tag)
        torch.save({"weight": torch.zeros(1)}, folder / "pretrained.pth")
        write_checkpoint(content(1), folder / "model_final.pth")  # of a shorter run
        found = newest_sound_checkpoint(folder)
        assert found is not None and found.content["iteration"] == 3
        assert "last_checkpoint" in found.refused[0] and "pretrained.pth" in found.refused[1]

    @pytest.mark.parametrize("tag", ["model_0000", "model_0000003.p", "model.pkl", "a\nb.pth", "x\0y.pth", "x" * 999])
    def test_with_a_damaged_tag_the_newest_is_taken(self, folder: Path, tag: str):
        (folder / "last_checkpoint").write_text(tag)
        found = newest_sound_checkpoint(folder)
        assert found is not None and found.content["iteration"] == 3
        [reason] = found.refused
        assert "last_checkpoint has " in reason and reason.isprintable()

    @pytest.mark.parametrize("is_named", [True, False])
    @pytest.mark.parametrize(
        ("entries", "reason"),
        [
            *(
                ({"iteration": value}, f"iteration is {value!r}, expected")
                for value in ("x", None, math.inf, 1.5, True, -5)
            ),
            *(({"trainer": value}, f"trainer is {value!r}, expected a dict") for value in (5, None, [5])),
            ({"trainer": {}}, "no trainer.iteration"),
            ({"trainer": {"iteration": 3}}, "no trainer._trainer"),
            ({"trainer": {"iteration": 3, "_trainer": {"optimizer": 5}}}, "trainer._trainer.optimizer is 5, expected"),
            *(
                ({"processes": [value]}, "processes.0")
                for value in (5, {}, {"loader": 5}, {"loader": None, "random": 5})
            ),
            ({"processes": {"a": 1}}, "processes is {'a': 1}, expected a list"),
        ],
    )
    def test_entries_of_another_type_count_as_damage(
        self, folder: Path, entries: dict[str, Any], reason: str, is_named: bool
    ):
        write_checkpoint({**content(3), **entries}, folder / "model_0000003.pth")
        if not is_named:
            (folder / "last_checkpoint").unlink()
        found = newest_sound_checkpoint(folder)
        assert found is not None and found.content["iteration"] == 2
        assert any(f"{folder / 'model_0000003.pth'}: " in text and reason in text for text in found.refused)

    def test_weights_alone_are_no_run(self, folder: Path):
        torch.save({"model": content(3)["model"]}, folder / "model_0000003.pth")
        found = newest_sound_checkpoint(folder)
        assert found is not None and found.content["iteration"] == 2
        assert "no iteration and trainer" in found.refused[0]

    @pytest.mark.parametrize("value", [torch.eye(2).to_sparse(), torch.zeros(2, device="meta"), torch.ones(2) * 1j])
    def test_weights_that_cannot_be_used_count_as_damage(self, folder: Path, value: torch.Tensor):
        write_checkpoint({**content(3), "model": {"weight": value}}, folder / "model_0000003.pth")
        found = newest_sound_checkpoint(folder)
        assert found is not None and found.content["iteration"] == 2
        assert "weight is a tensor" in found.refused[0]

    @pytest.mark.parametrize("tag", ["../model.pth", "/elsewhere/model.pth", "..", "model.pkl"])
    def test_a_tag_that_leads_elsewhere_is_refused(self, folder: Path, tag: str):
        (folder / "model.pkl").touch()
        (folder / "last_checkpoint").write_text(tag)
        with pytest.raises(UserError, match=r"expected the name of a \.pth file in this folder"):
            newest_sound_checkpoint(folder)

    def test_no_sound_one(self, tmp_path: Path):
        assert newest_sound_checkpoint(tmp_path) is None
        (tmp_path / "model_0000001.pth").write_bytes(b"PK half")
        with pytest.raises(UserError, match=r"^cannot resume: no sound checkpoint .*model_0000001\.pth: torn[^\n]*$"):
            newest_sound_checkpoint(tmp_path)
