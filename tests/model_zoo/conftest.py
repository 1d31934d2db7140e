"""An empty cache, and no proxy between the tests and their server."""

from __future__ import annotations

from pathlib import Path

import pytest

from psf.model_zoo import download


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        for form in (name, name.upper()):
            monkeypatch.delenv(form, raising=False)
    monkeypatch.setenv("PSF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0, 0.0))
    return tmp_path / "cache"
