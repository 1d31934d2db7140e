"""The state of a process in a checkpoint, also if it does not fit the training that is resumed."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch

from psf.data import TrainingLoader, build_train_loader
from psf.engine.hooks import ProcessStateHook
from tests.models import tiny_config


def hook_of(loader: object) -> ProcessStateHook:
    return ProcessStateHook(SimpleNamespace(data_loader=loader, start_loader=lambda: None))


def loader_of(*names: str) -> TrainingLoader:
    cfg = tiny_config(DATALOADER__NUM_WORKERS=0, SOLVER__IMS_PER_BATCH=2)
    return build_train_loader(cfg, [{"file_name": name, "width": 2, "height": 2} for name in names], lambda one: one)


def test_the_same_loader_has_the_same_random_numbers(caplog: pytest.LogCaptureFixture):
    state = hook_of(loader_of("a.png", "b.png")).capture()
    expected = torch.rand(3)
    hook = hook_of(loader_of("a.png", "b.png"))
    hook.resumed = state
    hook.before_train()
    assert torch.equal(torch.rand(3), expected)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (loader_of("a.png", "b.png"), loader_of("a.png", "c.png"), "in the checkpoint: images ("),
        ([], loader_of("a.png", "b.png"), "in the checkpoint: the training loader, which has no state"),
        (loader_of("a.png", "b.png"), [], "in the checkpoint: the training loader, which has no state"),
    ],
)
def test_one_line_says_what_differs(before: object, after: object, text: str, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING)
    hook = hook_of(after)
    hook.resumed = hook_of(before).capture()
    hook.before_train()
    record = caplog.records[-1]
    assert "not with the losses of an unbroken run" in record.getMessage() and text in record.getMessage()
