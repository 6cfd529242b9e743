"""Latencies in buckets."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from ingest.latency import Latencies


@given(
    st.lists(st.floats(min_value=1e-5, max_value=100.0), min_size=1),
    st.sampled_from([50.0, 90.0, 99.0, 100.0]),
)
def test_a_percentile_is_within_2_percent(seconds: list[float], percent: float) -> None:
    latencies = Latencies()
    for one in seconds:
        latencies.add(one)
    exact = sorted(seconds)[math.ceil(len(seconds) * percent / 100) - 1]
    assert abs(latencies.percentile_s(percent) - exact) <= 0.02 * exact
    assert latencies.max_s == max(seconds)


def test_none_at_all_is_zero() -> None:
    assert Latencies().percentile_s(99) == 0.0


def test_odd_latencies_are_counted() -> None:
    latencies = Latencies()
    for seconds in (0.0, -1.0, 1e9):
        latencies.add(seconds)
    assert latencies.count == 3
    assert latencies.percentile_s(100) <= 1e9
