"""psf in one process with other Detectron2 plugins, imported before or after them."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("order", ["psf", "psf,siblings", "siblings,psf"])
def test_psf_runs_beside_other_plugins(run_python, order: str):
    process = run_python("-W", "ignore", "-m", "tests.siblings", order)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1] == "together"
