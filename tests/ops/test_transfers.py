"""Copies in one transfer are those of each tensor alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from psf.ops.transfers import copy_to_device, copy_to_host
from tests.host_waits import count_host_waits

DTYPES = [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64]


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
        copies = copy_to_host(*tensors)
    assert waits.total == 1
    for tensor, copy in zip(tensors, copies, strict=True):
        expected = tensor.detach().numpy()
        assert copy.dtype == expected.dtype and copy.shape == expected.shape
        assert copy.tobytes() == expected.tobytes()


def test_copies_do_not_share_memory():
    tensor = torch.zeros(3)
    copy_to_host(tensor)[0][0] = 1
    assert tensor.tolist() == [0, 0, 0]


@pytest.mark.parametrize("values", [[1, 2], (), np.array([3, 4]), [[1, 2], [3, 4]]], ids=str)
def test_to_the_device_without_waiting(values):
    with count_host_waits() as waits:
        tensor = copy_to_device(values, torch.device("cpu"), torch.float64)
    assert waits.total == 0 and sum(waits.copies.values()) == 1
    assert tensor.dtype == torch.float64 and tensor.tolist() == np.asarray(values).tolist()
