"""Which implementation runs: by what is asked for, device and size; said once."""

from __future__ import annotations

import importlib.util
import logging

import pytest
import torch

from psf.ops import choice, describe_implementation, ms_deform_attn
from psf.ops.choice import Work, choose
from tests.ops.problems import problem


@pytest.fixture(autouse=True)
def no_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment of these tests asks for."""
    monkeypatch.delenv("PSF_MSDA", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.mark.parametrize(
    ("device", "points", "has_gradient", "is_deterministic", "name"),
    [
        ("cpu", 10**6, False, False, "bag"),
        ("cpu", 10**6, True, True, "bag"),
        ("cpu", 1000, False, False, "reference"),
        ("cpu", 20_000, False, False, "bag"),
        ("cpu", 20_000, True, False, "reference"),
        ("cuda", 10**6, True, False, "reference"),
        ("cuda", 10**6, True, True, "bag"),
        ("cuda", 10**6, False, True, "reference"),
        ("mps", 10**6, True, True, "reference"),
    ],
)
def test_default(device, points, has_gradient, is_deterministic, name):
    assert choose(Work(device, points, has_gradient, is_deterministic)).name == name


def test_argument_comes_before_the_environment_and_that_before_the_default(monkeypatch):
    small = Work("cpu", 10, False, False)
    monkeypatch.setenv("PSF_MSDA", "bag")
    assert choose(small) == ("bag", "set by the environment variable PSF_MSDA")
    assert choose(small, "reference") == ("reference", "set by the argument implementation")
    monkeypatch.setenv("PSF_MSDA", "")
    assert choose(small).name == "reference"


def test_wishes_that_cannot_be_met_are_errors(monkeypatch):
    with pytest.raises(
        ValueError, match="argument implementation is 'cuda'; known implementations: reference, bag, triton"
    ):
        choose(Work("cpu", 10, False, False), "cuda")
    with pytest.raises(ValueError, match="'bag', which runs on cpu and cuda, but the tensors are on mps"):
        choose(Work("mps", 10, False, False), "bag")
    with pytest.raises(ValueError, match="'reference', whose gradients are not deterministic on a GPU; use 'bag'"):
        choose(Work("cuda", 10, True, True), "reference")
    assert choose(Work("cuda", 10, False, True), "reference").name == "reference"
    monkeypatch.setenv("PSF_MSDA", "grid_sample")
    with pytest.raises(ValueError, match="environment variable PSF_MSDA is 'grid_sample'; known"):
        ms_deform_attn(*problem(1, [(2, 2)]))
    assert "PSF_MSDA is 'grid_sample'" in describe_implementation()


def test_triton_is_optional(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else find_spec(name))
    with pytest.raises(ValueError, match="the package triton is not installed: pip install triton"):
        choose(Work("cuda", 10, False, False), "triton")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
def test_triton_needs_a_gpu():
    assert choose(Work("cuda", 10, True, True), "triton").name == "triton"
    with pytest.raises(ValueError, match="'triton', which runs on cuda, but the tensors are on cpu"):
        choose(Work("cpu", 10, False, False), "triton")


def test_importing_psf_does_not_import_triton(run_python):
    code = "import sys, psf.ops; sys.exit('psf.ops.triton_kernels' in sys.modules)"
    assert run_python("-c", code, hidden=["triton"]).returncode == 0


def test_choice_is_logged_once(monkeypatch, caplog):
    monkeypatch.setattr(choice, "_logged", False)
    inputs = problem(2, [(2, 3)])
    with caplog.at_level(logging.INFO, logger="psf.ops.choice"):
        ms_deform_attn(*inputs)
        ms_deform_attn(*inputs, implementation="bag")
    assert [record.getMessage() for record in caplog.records] == [
        "deformable attention: reference (the fastest on a CPU below 16000 points per image)"
    ]


def test_doctor_can_say_what_runs(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert describe_implementation() == "bag on cpu: the fastest on a CPU from 16000 points per image"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert describe_implementation().startswith("reference on cuda: no GPU benchmark shows a faster one")


def test_a_device_that_is_named_is_described_whatever_is_here(monkeypatch):
    for has_gpu in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_gpu=has_gpu: has_gpu)
        assert describe_implementation("cpu").startswith("bag on cpu: ")
        assert describe_implementation("cuda").startswith("reference on cuda: ")
