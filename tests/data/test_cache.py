"""What psf keeps: where, whole or not at all, and the error where that is impossible."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.utils.file_io import PathManager

from psf.checkpoint import pretrained
from psf.data.cache import cache_draft


def test_a_file_appears_whole(tmp_path: Path):
    target = tmp_path / "new" / "weights.pth"
    for text in ("one", "two"):
        with cache_draft(target) as draft:
            draft.write_text(text)
            assert draft != target
        assert target.read_text() == text
    with pytest.raises(KeyboardInterrupt), cache_draft(target) as draft:
        draft.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "two" and list(target.parent.iterdir()) == [target]


def test_weights_name_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PSF_CACHE", str(tmp_path / "file" / "psf"))
    monkeypatch.setattr(pretrained, "_convert", lambda weights: {})
    with pytest.raises(ValueError, match=r"cannot write .*tf_efficientnet_lite0\.pth .*PSF_CACHE"):
        PathManager.get_local_path("psf://tf_efficientnet_lite0")
