from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processors import tally
from processors.tally import ACCEPT_US, BUCKETS, COMMIT_ORDERS, Tally, bucket, limit, sums


@given(st.integers(0, limit(BUCKETS - 2) - 1))
def test_a_value_is_below_the_limit_of_its_bucket_and_of_none_before(value: int) -> None:
    place = bucket(value)
    assert value < limit(place)
    assert place == 0 or value >= limit(place - 1)


@given(st.integers(4, limit(BUCKETS - 2) - 1))
def test_a_bucket_is_at_most_a_quarter_wide(value: int) -> None:
    place = bucket(value)
    assert limit(place) - limit(place - 1) <= max(1, value / 4)


@pytest.mark.parametrize(("value", "place"), [(-5, 0), (0, 0), (2**70, BUCKETS - 1)])
def test_what_is_out_of_range_is_counted_at_the_end(value: int, place: int) -> None:
    assert bucket(value) == place


def test_no_two_words_of_a_page_are_the_same() -> None:
    words = [tally.OWNER, *tally.WORD.values()]
    for name, at in tally.HISTOGRAM.items():
        if name != "sync_us":  # it is a front's, and lies where a worker has another
            words += range(at, at + BUCKETS + 1)
    assert len(set(words)) == len(words)
    assert max(words) < len(Tally().page)


@pytest.mark.parametrize("passed_us", [0, 1, 3, 4, 7, 8, 100, 10**6, 10**12])
def test_the_hot_path_counts_as_every_other(
    passed_us: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hot, plain = Tally(), Tally()
    monkeypatch.setattr(time, "perf_counter_ns", lambda: 1000 * passed_us + 999)
    hot.accepted(0)
    plain.count("accepted")
    plain.observe(ACCEPT_US, passed_us)
    assert hot.page == plain.page


def test_pages_add_up_word_by_word() -> None:
    one, other = Tally(), Tally()
    one.count("accepted", 2)
    other.count("accepted", 3)
    other.observe(COMMIT_ORDERS, 7)
    total = sums([one.page, Tally().page, other.page])
    assert total[tally.ACCEPTED] == 5
    assert total[COMMIT_ORDERS + bucket(7)] == 1
    assert total[COMMIT_ORDERS + BUCKETS] == 7
