"""Each side of the ring benchmark runs, and one that loses or tears messages would be found out."""

from __future__ import annotations

import pytest

from benchmarks.messages import Pool, Summed, Whole
from benchmarks.ring import BATCHES, ONE, in_batches, one_by_one
from tests.benchmarks.conftest import RunSide

NAMES = [(ONE, side.name) for side in one_by_one(0)]
NAMES += [(BATCHES, side.name) for side in in_batches(0)]
# Peers are installed by `make bench` alone.
PEER = pytest.mark.prove
SIDES = [
    pytest.param(table, name, marks=() if name.startswith("ours") else PEER)
    for table, name in NAMES
]


@pytest.mark.parametrize(("table", "side"), SIDES)
def test_every_side_passes_its_messages_on(run_side: RunSide, table: str, side: str) -> None:
    figures = run_side("ring", table, side)
    assert figures["messages_per_s"] > 0
    assert figures["cpu_per_message_us"] > 0


@pytest.mark.prove
@pytest.mark.parametrize(
    ("table", "side"), [("capacity", "one by one, 1"), ("payload", "batches of 64, 64")]
)
def test_sweeps_reach_the_smallest(run_side: RunSide, table: str, side: str) -> None:
    assert run_side("ring", table, side)["messages"] > 0


def test_a_lost_message_is_noticed() -> None:
    pool = Pool(64)
    summed = Summed(pool)
    summed(pool.payloads[:63] + pool.payloads[64:65])
    assert summed.count == 64
    assert summed.wrong(64)


def test_a_torn_message_is_noticed() -> None:
    pool = Pool(64)
    torn = pool.payloads[0][:32] + pool.payloads[1][32:]
    with pytest.raises(Exception, match="message 0"):
        Whole(pool)([torn])


def test_whole_messages_pass() -> None:
    pool = Pool(64)
    whole, summed = Whole(pool), Summed(pool)
    for check in (whole, summed):
        check(pool.payloads)
        check(pool.payloads)
        assert check.wrong(2 * len(pool.payloads)) == ""
