"""Folders of reference numbers that are not what they should be: ValueErrors that say where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fidelity import check_folder
from fidelity.evaluation import _keep_arguments
from fidelity.stored import StoredTensors

OWN = Path(__file__).parent
IMAGES = {"images": [{"height": 64, "width": 96, "seed": 4}]}


def check(folder: Path, cases: Any, train: Any = None) -> None:
    (folder / "cases.json").write_text(json.dumps(cases))
    (folder / "train.json").write_text(json.dumps(train))
    list(check_folder(folder))


@pytest.mark.parametrize(
    "case, message",
    [
        ({}, "a: expected a key 'images', found nothing"),
        ([], r"a: expected a JSON object, found \[\]"),
        (IMAGES, r"a: expected a key 'output_sizes', found \['images'\]"),
        ({**IMAGES, "output_sizes": []}, r"a: output_sizes: expected 1, one per image, found \[\]"),
        ({**IMAGES, "output_sizes": [[50, 77]]}, r"a: expected a key 'manifest', found \['images', 'output_sizes'\]"),
        (
            {"images": [{"height": 64}], "output_sizes": [[50, 77]], "scale_factors": [1.0]},
            r"a: images\[0\]: expected a key 'width', found \['height'\]",
        ),
    ],
)
def test_what_a_case_lacks(tmp_path: Path, case: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"cases\.json: eval: " + message):
        check(tmp_path, {"eval": {"a": case}})


def test_what_training_lacks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cases\.json: train: expected a key 'file', found nothing"):
        check(tmp_path, {"train": {}})
    node = {"file": "train.json", "manifest": str(OWN / "manifest_tiny.json")}
    cases = {"config": str(OWN / "tiny.yaml"), "train": node}
    with pytest.raises(ValueError, match=r"train\.json: things: expected a key 'images', found \['pad'\]"):
        check(tmp_path, cases, {"things": {"pad": None}})
    with pytest.raises(ValueError, match=r"train\.json: things: expected a JSON object, found 3"):
        check(tmp_path, cases, {"things": 3})


@pytest.mark.parametrize(
    "factors", [None, [[1.25, 187 / 150, 1.25, 187 / 150]], [1.25, 1.2467, 1.25, 1.2467], [None], [[1.25, 1.2467]]]
)
def test_scale_factors_that_fit(tmp_path: Path, factors: Any) -> None:
    """Of an image of 187 x 245 for results of 150 x 196, as (w, h, w, h); then the next thing is missing."""
    case = {"images": [{"height": 187, "width": 245}], "output_sizes": [[150, 196]], "scale_factors": factors}
    with pytest.raises(ValueError, match="expected a key 'manifest'"):
        check(tmp_path, {"eval": {"a": case}})


@pytest.mark.parametrize("factors", [[[1.0, 1.0, 1.0, 1.0]], [[187 / 150, 1.25, 187 / 150, 1.25]]])
def test_scale_factors_that_contradict_the_sizes(tmp_path: Path, factors: Any) -> None:
    case = {"images": [{"height": 187, "width": 245}], "output_sizes": [[150, 196]], "scale_factors": factors}
    with pytest.raises(ValueError, match=r"eval: a: scale_factors: expected \[1.25, .* output size 150 x 196, found"):
        check(tmp_path, {"eval": {"a": case}})


@pytest.mark.parametrize("part", [0, 3, 100, 1500, -10])
def test_torn_files(tmp_path: Path, part: int) -> None:
    file = tmp_path / "x.npz"
    np.savez_compressed(file, x=np.random.RandomState(0).random_sample(500))
    file.write_bytes(file.read_bytes()[:part])
    with pytest.raises(ValueError, match=r"x\.npz: expected an \.npz file of reference tensors"):
        StoredTensors([file])


def test_a_file_with_a_flaw_inside(tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    np.savez_compressed(file, x=np.random.RandomState(0).random_sample(500))
    content = bytearray(file.read_bytes())
    content[200:260] = bytes(60)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npz: expected an \.npz file of reference tensors"):
        StoredTensors([file])


def test_a_tensor_that_lacks_a_part(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x__flat=np.zeros(3))
    with pytest.raises(ValueError, match=r"x\.npz: expected an array x__shape, found 1 others"):
        StoredTensors([tmp_path / "x.npz"]).compare("c", "x", np.zeros(9), 0.0)


def test_keyword_arguments_of_decoders_are_kept() -> None:
    """But `layer`: all layers are decoded again."""
    decoder, kept = torch.nn.Bilinear(1, 1, 1), {}
    decoder.register_forward_pre_hook(_keep_arguments(kept, "things"), with_kwargs=True)
    one = torch.ones(1)
    decoder(one, input2=one)
    assert kept == {"things": ((one,), {"input2": one})}
    _keep_arguments(kept, "stuff")(decoder, (one,), {"query_pos": None, "layer": -1})
    assert kept["stuff"] == ((one,), {"query_pos": None})
