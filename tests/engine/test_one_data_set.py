"""Some images of a data set."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from psf.engine import spread_evenly


@given(total=st.integers(0, 200), count=st.none() | st.integers(1, 300))
def test_spread_evenly(total: int, count: int | None):
    chosen = spread_evenly(range(total), count)
    assert len(chosen) == (total if count is None else min(count, total))
    gaps = {after - before for before, after in zip(chosen, [*chosen[1:], total])}
    assert chosen[:1] == [0][:total]
    assert 0 not in gaps and max(gaps, default=0) - min(gaps, default=0) <= 1
