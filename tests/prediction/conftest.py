"""One model file and its predictor for all tests of the package; nobody changes them."""

from __future__ import annotations

from pathlib import Path

import pytest

import psf
from tests.model_files import write_model_file


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_file(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def predictor(model_file: Path) -> psf.Predictor:
    return psf.Predictor(model_file, device="cpu")
