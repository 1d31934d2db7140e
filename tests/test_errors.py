"""`UserError`: one class for mistakes of the user, also out of a worker of a data loader."""

from __future__ import annotations

import pytest
import torch.utils.data as torch_data

from psf.commands import run_command
from psf.errors import UserError, without_worker


class Damaged(torch_data.Dataset):
    """Its only item cannot be read."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        raise UserError("a.png: empty\nor no image: expected a PNG")


def test_it_is_a_value_error():
    assert issubclass(UserError, ValueError) and str(UserError("found a")) == "found a"


def test_the_message_is_one_short_line():
    error = UserError("a\n  b \x1b[31m\u202e " + 5_000_000 * "x" + " end")
    assert "\n" not in str(error) and str(error).isprintable()
    assert str(error).startswith(r"a b \x1b[31m\u202e xxx") and str(error).endswith("x end") and len(str(error)) < 2200

    assert len(str(UserError(5_000 * "\x03"))) < 2200  # shown as four characters each


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_worker_hands_the_message_on(num_workers: int):
    with pytest.raises(UserError) as caught:
        list(torch_data.DataLoader(Damaged(), num_workers=num_workers))
    assert str(caught.value) == "a.png: empty or no image: expected a PNG"


class Unreadable(Damaged):
    def __getitem__(self, index: int) -> None:
        raise PermissionError(13, "Permission denied", "a.png")


def test_the_message_of_an_error_of_the_system(capsys: pytest.CaptureFixture[str]):
    assert run_command(lambda: list(torch_data.DataLoader(Unreadable(), num_workers=1))) == 2
    assert capsys.readouterr().err == "error: [Errno 13] Permission denied: 'a.png'\n"
    for text in ("plain", "Caught a cold in winter", "Caught: Original Traceback"):
        assert without_worker(text) == text
