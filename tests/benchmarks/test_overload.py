"""What overload finds out of what it has seen, and that it runs."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from benchmarks.memory import (
    Bound,
    bound_of,
    connection_bytes,
    file_bytes,
    resident_bytes,
    ring_bytes,
)
from benchmarks.overload import (
    SIDE,
    TABLE,
    Sample,
    Story,
    check_answers,
    compare,
    drained_after_s,
    figures_of,
    growth,
    normal_after_s,
)
from benchmarks.sender import Phase, Sent, intended
from benchmarks.stock import NotDone
from processors.datadir import geometry
from processors.settings import Settings, load_settings
from ringbuf import Ring
from tests.benchmarks.conftest import RunSide

OVER_S, END_S = 10.0, 30.0
KEY = bytes(range(16))


def settings_of(*words: str) -> Settings:
    return load_settings(["--data-dir", "/", *words], {})[0]


def sent(rate_per_s: float, duration_s: float, began_s: float) -> Sent:
    due_s = intended([Phase(rate_per_s, duration_s)])
    ones = np.ones_like(due_s)
    return Sent(due_s, 0.001 * ones, 0 * ones, np.full(len(due_s), 202, np.int16), began_s)


def story(
    samples: list[Sample] | None = None, normal: Sent | None = None, commits_per_s: float = 300.0
) -> Story:
    """Normal orders from 0 to END_S; from 10 to 20 too many."""
    return Story(
        idle_bytes=0,
        calm_s=OVER_S,
        samples=samples or [Sample(OVER_S, 0, 1), Sample(OVER_S + 9, 0, 1)],
        normal=normal or sent(100, END_S, 0.0),
        flood=sent(3_000, 10.0, OVER_S),
        commits_s=np.arange(0.0, END_S, 1 / commits_per_s),
        lost=0,
    )


@pytest.mark.prove  # a minute made short, with two senders: still more than a test's share
def test_an_overload_loses_nothing(run_side: RunSide) -> None:
    figures = run_side("overload", TABLE, SIDE)
    assert figures["lost_orders"] == 0
    assert figures["refused_percent"] > 0


def test_goodput_is_what_was_committed_while_too_many_came() -> None:
    assert figures_of(story(commits_per_s=150.0))["goodput_percent"] == pytest.approx(50, abs=0.1)


def test_what_leaves_late_was_not_offered_in_time() -> None:
    late = story()
    late.flood.late_s[15_000:] = 60.0
    assert figures_of(late)["offered_per_s"] == pytest.approx(1_500, rel=0.001)


def test_it_is_normal_at_once_when_nothing_changed() -> None:
    assert normal_after_s(story()) == 0


@pytest.mark.parametrize(("until_s", "after_s"), [(22.0, 2.0), (END_S, 10.0)])
def test_it_is_normal_when_no_slice_is_slow_any_more(until_s: float, after_s: float) -> None:
    normal = sent(100, END_S, 0.0)
    normal.latency_s[(normal.intended_s > OVER_S) & (normal.intended_s < until_s)] = 0.5
    assert normal_after_s(story(normal=normal)) == pytest.approx(after_s, abs=0.3)


def test_it_is_not_normal_while_one_order_is_refused() -> None:
    normal = sent(100, END_S, 0.0)
    normal.status[2_300] = 503
    assert normal_after_s(story(normal=normal)) == pytest.approx(3.0, abs=0.3)


@pytest.mark.parametrize(
    ("depths", "after_s"), [([100, 5, 5, 5], 0.5), ([5, 5, 5, 5], 0.0), ([5, 5, 5, 100], 3.5)]
)
def test_the_ring_is_drained_when_few_wait_and_stay_few(depths: list[int], after_s: float) -> None:
    samples = [Sample(20.4 + n, depth, 0) for n, depth in enumerate(depths)]
    assert drained_after_s(samples, 20.0, 10) == pytest.approx(after_s)


def test_growth_is_of_the_peaks_of_both_halves() -> None:
    samples = [Sample(OVER_S + n, 0, memory) for n, memory in enumerate([90, 100, 80] * 2)]
    samples += [Sample(OVER_S + 5.5, 0, 150), Sample(OVER_S + 50, 0, 999)]
    assert growth(story(samples)) == 1.5


def test_only_202_and_503_are_answers() -> None:
    odd = sent(10, 1.0, 0.0)
    check_answers([odd])
    odd.status[3] = 0
    with pytest.raises(NotDone, match="0: 1"):
        check_answers([odd])


@pytest.mark.parametrize(
    ("stored", "lost"), [([KEY], 0), ([], 1), ([KEY, bytes(16)], None)], ids=str
)
def test_the_database_has_exactly_what_was_answered(
    tmp_path: Path, stored: list[bytes], lost: int | None
) -> None:
    (tmp_path / "ledger").write_text("00010203-0405-0607-0809-0a0b0c0d0e0f 202\n")
    with closing(sqlite3.connect(tmp_path / "rasher.db")) as database, database:
        database.execute("CREATE TABLE orders (id BLOB, committed_us INTEGER)")
        database.executemany("INSERT INTO orders VALUES (?, 1)", [(key,) for key in stored])
    one = sent(1, 1.0, 0.0)
    if lost is None:
        with pytest.raises(NotDone, match="nobody took in"):
            compare(tmp_path, [one])
    else:
        assert compare(tmp_path, [one])[1] == lost


def test_the_bound_counts_the_ring_as_it_is(tmp_path: Path) -> None:
    settings = settings_of("--capacity", "7", "--batch", "3", "--workers", "9")
    path = tmp_path / "a.ring"
    sizes = geometry(settings)
    readers, hand, writers = sizes["readers"], sizes["hand"], sizes["writers"]
    with Ring.create(path, 7, settings.ring.slot_bytes, readers, hand, writers=writers):
        assert ring_bytes(settings) == path.stat().st_size
        assert file_bytes(str(path)) >= ring_bytes(settings)


def test_the_bound_follows_the_settings() -> None:
    one, more = settings_of(), settings_of("--fronts", "2", "--max-connections", "5000")
    added = (2 * 5_000 - 4_096) * connection_bytes(one)
    bounds = [bound_of(each, 1_000).total for each in (one, more)]
    assert bounds[1] - bounds[0] == added
    assert connection_bytes(settings_of("--max-body-bytes", "1000000")) > connection_bytes(one)


def test_a_bound_shows_its_terms() -> None:
    assert str(Bound({"a": 1 << 20, "b": 1 << 21})) == "3.0 MiB = a 1.0 + b 2.0"


def test_memory_that_is_taken_is_seen() -> None:
    before = resident_bytes([os.getpid()])
    taken = b"x" * (64 << 20)
    assert resident_bytes([os.getpid()]) - before > 0.9 * len(taken)
