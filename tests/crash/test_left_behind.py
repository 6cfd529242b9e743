"""What a stop leaves in memory is on disk, and the next start has it, with the ring's file or
without."""

from __future__ import annotations

import signal
import threading
from contextlib import closing

import pytest
from _pytest.mark import ParameterSet

from processors.doubt import EXIT_DOUBT
from tests.crash.disk import NO_ANSWER, Ledger, new_connection, order, post_orders
from tests.crash.faults import Faults
from tests.program import Client, Rasher, Start, verb

FLAGS = ("--workers", "1", "--capacity", "256", "--segment-bytes", "65536")
HELD_UP = ("--processor", "tests.crash.disk:held_up", "--graceful-timeout", "1")
ORDERS = 40


def begin(start: Start, ledger: Ledger, *argv: str) -> Rasher:
    """With orders that no worker gets done with."""
    run = start(*FLAGS, *HELD_UP, *argv).ready()
    client = Client(run)
    with closing(client.connection):
        client.stock("1000")
    post_orders(run.port, ledger, each=ORDERS // 8)
    assert ledger.statuses == {202: ORDERS}
    return run


def check(run: Rasher, ledger: Ledger) -> None:
    run.until(lambda: run.left() == 0, "all worked off")
    audit = verb(run, "audit", "--ledger", str(ledger.path))
    assert audit.returncode == 0, audit.stdout
    count = run.column("SELECT count(*) FROM orders")[0]
    assert 0 <= count - ledger.statuses[202] <= ledger.statuses[NO_ANSWER]
    assert run.end(signal.SIGTERM) == 0
    assert not run.log.count("can't be put back")


def long(number: int, durability: str) -> ParameterSet:
    return pytest.param(number, durability, marks=pytest.mark.prove)


@pytest.mark.parametrize(
    ("number", "durability"),
    [
        (signal.SIGINT, "disk"),
        long(signal.SIGINT, "memory"),
        long(signal.SIGTERM, "memory"),
        long(signal.SIGTERM, "disk"),
        long(signal.SIGQUIT, "disk"),
        long(signal.SIGQUIT, "memory"),
    ],
)
def test_what_a_stop_leaves_is_there_without_its_ring(
    rasher: Start, ledger: Ledger, number: int, durability: str
) -> None:
    run = begin(rasher, ledger, "--durability", durability)
    ring = run.ring_path()
    assert run.end(number) == 0
    assert run.log.count(f"{ORDERS} orders remain in {ring}, {run.data_dir}/journal")
    ring.unlink()
    check(rasher(*FLAGS, "--durability", durability).ready(), ledger)


def test_a_stop_on_a_full_disk_says_what_only_the_ring_has(
    faulty: Start, faults: Faults, ledger: Ledger
) -> None:
    run = begin(faulty, ledger, "--durability", "memory")
    faults.fill()
    assert run.end(signal.SIGINT) == 0
    assert run.log.count("what is in the ring can't be written to the journal: .*No space left")
    assert run.log.count(f"{ORDERS} orders remain in {run.ring_path()} .*: it must be before")
    faults.empty()
    check(faulty(*FLAGS, "--durability", "memory").ready(), ledger)


def test_a_ring_file_that_is_removed_under_load_ends_all_and_loses_nothing(
    rasher: Start, ledger: Ledger
) -> None:
    run = rasher(*FLAGS).ready()
    client = Client(run)
    with closing(client.connection):
        client.stock("100000")
    with closing(new_connection(run.port)) as connection:
        assert order(connection, ledger).status == 202
    load = threading.Thread(target=post_orders, args=(run.port, ledger, 100_000))
    load.start()
    run.until(lambda: ledger.statuses[202] > ORDERS, "orders under way")
    run.ring_path().unlink()
    try:
        code = run.end()
    finally:
        run.popen.kill()
        load.join()
    assert code == EXIT_DOUBT
    check(rasher(*FLAGS).ready(), ledger)


@pytest.mark.prove
def test_a_ring_file_that_is_removed_leaves_its_orders_in_the_journal(
    rasher: Start, ledger: Ledger
) -> None:
    run = begin(rasher, ledger)
    run.ring_path().unlink()
    assert run.end() == EXIT_DOUBT
    assert run.log.count(f"{ORDERS} orders remain in {run.data_dir}/journal")
    check(rasher(*FLAGS).ready(), ledger)
