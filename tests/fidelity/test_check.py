"""The model held against stored numbers: psf's own in this folder, the released model's where they are there."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fidelity import Comparison, check_folder, record_folder
from fidelity.evaluation import INSTANCE_TIE
from fidelity.folder import GoldenFolder
from fidelity.formula import formula_gt, formula_image, formula_weights
from fidelity.models import read_manifest
from fidelity.stored import StoredTensors, compare_arrays, compare_numbers
from fidelity.training_comparison import FAULT, OTHER_PRECISION

OWN = Path(__file__).parent


def beyond(reports: Iterator) -> list[Comparison]:
    """What is not within its tolerance; there must be something to compare."""
    comparisons = [comparison for report in reports for comparison in report.comparisons]
    assert comparisons
    return [comparison for comparison in comparisons if not comparison.passed]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of psf's own reference numbers, beside configs, whose yaml its config is based on."""
    folder = tmp_path / "tests" / "golden"
    shutil.copytree(OWN, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    (tmp_path / "configs").symlink_to(OWN.parents[1] / "configs")
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_own_numbers(dtype: torch.dtype) -> None:
    reports = list(check_folder(OWN, dtype))
    assert not beyond(iter(reports))
    assert not [name for report in reports for name in (*report.skipped, *report.unknown)]
    maps = [c for r in reports for c in r.comparisons if c.name.endswith("panoptic_category")]
    assert len(maps) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_of_the_released_model(shared: Path, dtype: torch.dtype) -> None:
    reports = list(check_folder(shared / "golden", dtype))
    assert not beyond(iter(reports))
    skipped = {why for report in reports for why in report.skipped.values()}
    assert skipped == {"dropped on purpose", INSTANCE_TIE, OTHER_PRECISION, FAULT}
    assert not [name for report in reports for name in report.unknown]
    assert len({c.case for r in reports for c in r.comparisons}) == 7


def test_recording_gives_what_checking_expects(copy: Path) -> None:
    train = json.loads((copy / "train.json").read_text())
    train = {name: {"images": case["images"], "pad": case["pad"]} for name, case in train.items()}
    (copy / "train.json").write_text(json.dumps(train))
    (copy / "eval_single.npz").unlink()
    assert sorted(file.name for file in record_folder(copy)) == ["eval_batch.npz", "eval_single.npz", "train.json"]
    assert not beyond(check_folder(copy))


def test_other_weights_are_noticed(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shaken(shapes):
        weights = formula_weights(shapes)
        weights["bbox_head.stuff_mask_head.attnen.q.weight"] += 1
        return weights

    monkeypatch.setattr("fidelity.models.formula_weights", shaken)
    found = {(c.case, c.name): c.largest / c.tolerance for c in beyond(check_folder(copy)) if c.tolerance}
    masks = [found["single", "img0_stuff_tail_mask"], found["batch", "img1_stuff_tail_mask"]]
    training = [found["things", "losses"], found["batch", "losses"], found["batch", "grad_norms"]]
    assert min(masks + training) > 10
    assert not any("things" in name or "block" in name for _, name in found if name.startswith("img"))


def test_the_tool_says_what_is_beyond_and_what_it_does_not_know(copy: Path, run_python) -> None:
    cases = json.loads((copy / "cases.json").read_text())
    cases["eval"].pop("batch")
    cases.pop("train")
    (copy / "cases.json").write_text(json.dumps(cases))
    with np.load(copy / "eval_single.npz") as stored:
        tensors = dict(stored)
    tensors["neck_p1"][0, 0, 0, 0] += 0.5
    tensors["surprise"] = np.zeros(3)
    np.savez(copy / "eval_single.npz", **tensors)
    done = run_python("-W", "ignore", "fidelity/check.py", str(copy))
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    first, repeated = [line for line in lines if line.endswith("BEYOND")]
    assert first == repeated and first.split()[:2] == ["single", "neck_p1"]
    assert lines[-3:-1] == ["UNKNOWN to psf, not compared: single: surprise", repeated]
    assert lines[-1].endswith(" compared, 1 beyond tolerance, 0 not compared on purpose, 1 unknown")


def test_a_folder_that_is_none(tmp_path: Path, run_python) -> None:
    done = run_python("-W", "ignore", "fidelity/check.py", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path}/cases.json: cannot be read as a JSON file")


def test_a_manifest_that_does_not_fit(copy: Path) -> None:
    shapes = json.loads((copy / "manifest_tiny.json").read_text())
    shapes["neck.convs.0.gn.weight"] = [32]
    del shapes["bbox_head.transformer.level_embeds"]
    (copy / "manifest_tiny.json").write_text(json.dumps(shapes))
    with pytest.raises(ValueError, match=r"2 parameters .* neck.input_proj.0.1.weight, pixel_encoder.level_embed"):
        GoldenFolder(copy, torch.float32).model("manifest_tiny.json")


def test_weights_of_the_formula(shared: Path) -> None:
    """The first numbers of samples, and the bytes of a whole model."""
    expected = json.loads((shared / "golden" / "checksums.json").read_text())
    weights = formula_weights(read_manifest(shared / "golden" / "manifest_r50.json"))
    for name, sample in expected["samples"].items():
        if name in weights:
            assert weights[name].reshape(-1)[: len(sample["first"])].tolist() == sample["first"]
            assert hashlib.sha256(weights[name].tobytes()).hexdigest().startswith(sample["sha"])


def test_images_and_ground_truth_of_the_formula(shared: Path) -> None:
    spec = importlib.util.spec_from_file_location("reference_fill", shared / "golden" / "fill.py")
    assert spec is not None and spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    assert np.array_equal(formula_image(50, 70, 3), reference.test_image(50, 70, 3))
    expected = reference.synthetic_targets(50, 70, 9, 4, 3)
    gt = formula_gt(50, 70, 9, 4, 3, num_thing_classes=80, num_stuff_classes=53)
    assert np.array_equal(gt.labels, expected["labels"])
    assert np.array_equal(gt.masks, expected["masks"].astype(bool))


class TestComparisons:
    def test_relative_to_the_largest_value(self) -> None:
        # Differences 0.02 and 0 over 4: at most 0.005, in the mean square 0.005 / sqrt(2).
        comparison = compare_arrays("c", "x", np.array([1.02, -4.0]), np.array([1.0, -4.0]), 0.006)
        assert comparison.largest == pytest.approx(0.005) and comparison.rms == pytest.approx(0.005 / 2**0.5)
        assert comparison.passed and not comparison._replace(tolerance=0.004).passed

    def test_masks_by_their_share(self) -> None:
        found = np.array([[True, False], [True, True]])
        assert compare_arrays("c", "x", found, ~found, 0.0).largest == 1.0
        assert compare_arrays("c", "x", found, found | np.eye(2, dtype=bool), 0.0).largest == 0.0

    @pytest.mark.parametrize("found", [np.zeros(3), np.array([np.nan, 1.0])])
    def test_another_shape_and_nan_are_never_within_tolerance(self, found: np.ndarray) -> None:
        assert not compare_arrays("c", "x", found, np.zeros(2), 1e9).passed

    def test_a_missing_number_is_never_within_tolerance(self) -> None:
        assert compare_numbers("c", "x", {"a": 1.001}, {"a": 1.0}, 1e-2, 1e-3).passed
        assert not compare_numbers("c", "x", {"a": 1.0}, {"a": 1.0, "b": 0.0}, 1e9, 1e-3).passed

    def test_statistics_tell_of_what_is_not_stored(self, tmp_path: Path) -> None:
        whole = np.arange(20.0)
        statistics = np.array([whole.mean(), whole.std(), whole.sum()])
        np.savez(tmp_path / "x.npz", x__flat=whole[::7], x__stride=7, x__shape=[20], x__stats=statistics)
        stored = StoredTensors([tmp_path / "x.npz"])
        assert stored.left == ["x"]
        assert stored.compare("c", "x", whole, 1e-6).passed
        whole[3] += 4  # between the stored ones
        assert not stored.compare("c", "x", whole, 1e-3).passed
        assert stored.left == []

    def test_some_elements_of_a_tensor_that_is_stored_in_part(self, tmp_path: Path) -> None:
        whole = np.arange(20.0).reshape(4, 5)
        np.savez(tmp_path / "x.npz", x__flat=whole.reshape(-1)[::3], x__stride=3, x__shape=[4, 5], x__stats=[9.5, 1, 1])
        stored = StoredTensors([tmp_path / "x.npz"])
        counts = np.ones((4, 5), bool)
        counts[1] = False
        found = whole + np.where(counts, 0, 99)
        assert stored.compare("c", "x", found, 0.0, counts).passed
        assert not stored.compare("c", "x", found, 1.0).passed
        found[3] += 1
        assert stored.compare("c", "x", found, 0.0, counts).largest == 1 / 18
