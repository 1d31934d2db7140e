"""Some images of a data set, and which set tools take."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psf.engine import build_subset_loader, setup
from psf.engine.one_data_set import spread_evenly
from tests.engine.conftest import ParseArgs


@given(total=st.integers(0, 200), count=st.none() | st.integers(1, 300))
def test_spread_evenly(total: int, count: int | None):
    chosen = spread_evenly(range(total), count)
    assert len(chosen) == (total if count is None else min(count, total))
    gaps = {after - before for before, after in zip(chosen, [*chosen[1:], total])}
    assert chosen[:1] == [0][:total]
    assert 0 not in gaps and max(gaps, default=0) - min(gaps, default=0) <= 1


@pytest.mark.parametrize("batch_size", ["1", "2"])
def test_as_many_images_as_asked_for(mini: str, parse_args: ParseArgs, batch_size: str):
    """Of 1, 11, 21, 31 and 41; a batch is not filled up with others."""
    cfg = setup(parse_args("MODEL.PSF.TEST.BATCH_SIZE", batch_size))
    for number, wanted in ((1, [1]), (3, [1, 11, 31]), (9, [1, 11, 21, 31, 41]), (None, [1, 11, 21, 31, 41])):
        batches = list(build_subset_loader(cfg, mini, number))
        assert [x["image_id"] for batch in batches for x in batch] == wanted
        assert Counter(map(len, batches))[int(batch_size)] == len(wanted) // int(batch_size)
