"""Copies between host and device, and the tables that are kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from psf.errors import UserError
from psf.ops import transfer
from psf.ops.transfer import download, download_arrays, level_sizes, upload, upload_numbers, upload_together
from tests.host_waits import count_host_waits

DTYPES = [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64]
SHAPES = [(3, 5), (2, 7)]


def test_many_tensors_travel_together_and_keep_their_shapes():
    tensors = [torch.arange(6).view(2, 3), torch.arange(0), torch.tensor(7), torch.zeros(2, 0, dtype=torch.long)]
    with count_host_waits() as waits:
        up = upload_together(tensors, "cpu")
    assert waits.total == 0 and sum(waits.copies.values()) == 1
    with count_host_waits() as waits:
        down = download(up)
    assert waits.total == 1
    for x, uploaded, downloaded in zip(tensors, up, down, strict=True):
        assert torch.equal(uploaded, x) and uploaded.shape == x.shape and uploaded.dtype == x.dtype
        assert torch.equal(downloaded, x) and downloaded.shape == x.shape


def test_nothing_to_copy():
    with count_host_waits() as waits:
        assert upload_together([], "cpu") == download([]) == []
    assert waits.total == 0


def test_all_types_and_shapes_in_one_transfer():
    generator = torch.Generator().manual_seed(0)
    tensors = [
        (100 * torch.rand(shape, generator=generator)).to(dtype)
        for dtype in DTYPES
        for shape in [(), (0,), (1,), (3,), (2, 3), (2, 0)]
    ]
    tensors += [torch.arange(12).view(3, 4).T, torch.arange(12.0).view(3, 4)[:, 1], torch.rand(3, requires_grad=True)]
    tensors += [torch.rand(1, 2)[:, 0], torch.full((2,), torch.nan), torch.tensor(-0.0)]
    with count_host_waits() as waits:
        copies = download_arrays(*tensors)
    assert waits.total == 1
    for tensor, copy in zip(tensors, copies, strict=True):
        expected = tensor.detach().numpy()
        assert copy.dtype == expected.dtype and copy.shape == expected.shape
        assert copy.tobytes() == expected.tobytes()


def test_copies_do_not_share_memory():
    tensor = torch.zeros(3)
    download_arrays(tensor)[0][0] = 1
    assert tensor.tolist() == [0, 0, 0]


@pytest.mark.parametrize("values", [[1, 2], (), np.array([3, 4]), [[1, 2], [3, 4]]], ids=str)
def test_to_the_device_without_waiting(values):
    with count_host_waits() as waits:
        tensor = upload_numbers(values, "cpu", torch.float64)
    assert waits.total == 0 and sum(waits.copies.values()) == 1
    assert tensor.dtype == torch.float64 and tensor.tolist() == np.asarray(values).tolist()


@pytest.mark.parametrize(("place", "expected"), [("cpu", True), ("meta", False)])
def test_a_copy_to_the_host_is_waited_for(place: str, expected: bool, monkeypatch: pytest.MonkeyPatch):
    """Its end would not be noticed: the host would read memory that is not written yet. "meta" stands for a GPU."""
    x, seen = torch.zeros(2, device=place), []
    monkeypatch.setattr(torch.Tensor, "to", lambda x, device, *, non_blocking: seen.append(non_blocking))
    upload(x, "cpu")
    assert seen == [expected]


def test_a_new_table_is_refused_in_the_capture_of_a_cuda_graph(monkeypatch: pytest.MonkeyPatch):
    """Only replays would fill it, but eager calls would find it, too."""
    transfer.kept_table.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(UserError, match=r"^[^\n]*run the model once with these sizes before the capture$"):
        transfer.kept_table(((5, 3),), torch.float32, torch.device("cuda", 0))
    assert transfer.kept_table.cache_info().currsize == 0


class TestLevelSizes:
    @pytest.fixture(autouse=True)
    def _empty(self) -> None:
        transfer.kept_table.cache_clear()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_width_and_height_of_the_type_asked_for(self, dtype: torch.dtype):
        sizes = level_sizes(SHAPES, torch.zeros(1, dtype=dtype))
        assert sizes.tolist() == [[5, 3], [7, 2]] and sizes.dtype == dtype

    def test_made_once(self):
        like = torch.zeros(1)
        assert level_sizes(SHAPES, like) is level_sizes(list(SHAPES), like)
        assert level_sizes(SHAPES, like) is not level_sizes(SHAPES[:1], like)

    def test_a_table_of_inference_serves_training(self):
        with torch.inference_mode():
            level_sizes(SHAPES, torch.zeros(1))
        weight = torch.ones(2, 2, requires_grad=True)
        (weight * level_sizes(SHAPES, weight.detach())).sum().backward()  # saves the table for backward
        assert weight.grad.tolist() == [[5, 3], [7, 2]]

    def test_fake_tensors_are_not_kept(self):
        with torch._subclasses.FakeTensorMode():
            fake = level_sizes(SHAPES, torch.zeros(1))
        assert isinstance(fake, torch._subclasses.FakeTensor)
        assert not isinstance(level_sizes(SHAPES, torch.zeros(1)), torch._subclasses.FakeTensor)

    def test_a_trace_has_its_own(self):
        traced = torch.jit.trace(lambda x: x * level_sizes(SHAPES, x), torch.ones(2, 2))
        assert traced(2 * torch.ones(2, 2)).tolist() == [[10, 6], [14, 4]]

    def test_the_number_of_tables_is_bounded(self):
        assert transfer.kept_table.cache_info().maxsize is not None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_uploads_do_not_wait():
    with torch.cuda.device(0):
        torch.cuda.set_sync_debug_mode("error")
        try:
            x = upload(torch.arange(1000), "cuda")
            upload_together([torch.arange(3), torch.arange(4)], "cuda")
            level_sizes(SHAPES, x.float())
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(x.cpu(), torch.arange(1000))
