"""Mistakes that are found before a run starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from psf.engine import argument_parser, check_run
from psf.errors import UserError


class TestTrainedFolder:
    def check(self, folder: Path, *words: str) -> None:
        """A run with the config.yaml in a folder."""
        run = ["--config-file", str(folder / "config.yaml"), "--num-gpus", "0", *words]
        check_run(argument_parser().parse_args(run))

    def test_is_not_evaluated_without_weights(self, trained: Path):
        with pytest.raises(UserError, match=rf"MODEL\.WEIGHTS is empty, .*MODEL\.WEIGHTS {trained}/model_final\.pth"):
            self.check(trained, "--eval-only")
        self.check(trained, "--eval-only", "--resume")
        self.check(trained, "--eval-only", "MODEL.WEIGHTS", str(trained / "model_final.pth"))

    @pytest.mark.parametrize("words", [("--resume",), ("--eval-only", "--resume")])
    def test_is_named_after_it_was_moved(self, trained: Path, words: tuple[str, ...]):
        moved = trained.rename(trained.with_name("moved"))
        with pytest.raises(UserError, match=rf"OUTPUT_DIR {trained}, where there is .* add OUTPUT_DIR {moved};"):
            self.check(moved, *words)
        self.check(moved, *words, "OUTPUT_DIR", str(moved))
