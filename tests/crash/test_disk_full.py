"""The disk is full, read-only or out of descriptors: nothing is taken in, nothing is lost, and it
goes on by itself."""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.crash.disk import Ledger, new_connection, order, post_orders
from tests.crash.faults import EVERY, FULL_EVERYWHERE, Faults, Kind
from tests.program import PATIENCE_S, Client, Rasher, Start, call, verb

FLAGS = ("--workers", "1", "--segment-bytes", "65536", "--capacity", "512")
JOURNAL = (Kind.HALF, Kind.JOURNAL)
ANSWER_S_MAX, RECOVERY_S_MAX = 1.0, 5.0
NO_MORE = 3  # descriptors: what is open stays open, and the next would have that number or a higher
ORDERS_MAX = 100  # far more than what two segments hold


def fill_journal(run: Rasher, ledger: Ledger) -> str:
    """Orders one after the other until one is refused -> why. It took no slot."""
    with run.ring() as ring, closing(new_connection(run.port)) as connection:
        for _ in range(ORDERS_MAX):
            tail, begun = ring.tail, time.monotonic()
            answer = order(connection, ledger)
            seconds = time.monotonic() - begun
            if answer.status != 202:
                assert (answer.status, ring.tail) == (503, tail)
                assert seconds < ANSWER_S_MAX
                assert int(answer.headers["retry-after"]) > 0
                return str(answer.content["detail"])
    raise AssertionError(f"{ORDERS_MAX} orders found room")


def seconds_until(condition: Callable[[], object], what: str) -> float:
    begun = time.monotonic()
    Rasher.until(condition, what)
    return time.monotonic() - begun


def accepted(run: Rasher, ledger: Ledger) -> bool:
    with closing(new_connection(run.port)) as connection:
        return order(connection, ledger).status == 202


def check(run: Rasher, ledger: Ledger) -> None:
    """All that was answered is there, nothing that was refused."""
    run.until(lambda: run.left() == 0, "all worked off")
    audit = verb(run, "audit", "--ledger", str(ledger.path))
    assert audit.returncode == 0, audit.stdout
    assert run.end(signal.SIGTERM) == 0
    there = set(run.column("SELECT lower(hex(id)) FROM orders"))
    assert not there & {order_id.replace("-", "") for order_id in ledger.refused}


@pytest.fixture
def run(faulty: Start) -> Rasher:
    """With enough in stock."""
    run = faulty(*FLAGS).ready()
    client = Client(run)
    with closing(client.connection):
        client.stock("100000")
    return run


@pytest.mark.alone
def test_full_disk_is_said_before_a_slot_is_taken_and_is_got_over(
    run: Rasher, faults: Faults, ledger: Ledger
) -> None:
    faults.fill(kinds=JOURNAL)
    detail = fill_journal(run, ledger)
    assert "No space left on device" in detail
    assert "nothing was taken in" in detail
    status, content = call(run, "GET", "/readyz")
    assert (status, content["detail"]) == (503, detail)
    faults.empty()
    assert seconds_until(lambda: accepted(run, ledger), "accepted again") < RECOVERY_S_MAX
    assert call(run, "GET", "/readyz") == (200, {"status": "ready", "degraded": []})
    check(run, ledger)


@pytest.mark.prove
def test_orders_wait_for_a_database_whose_disk_is_full(
    run: Rasher, faults: Faults, ledger: Ledger
) -> None:
    before = run.column("SELECT count(*) FROM orders")[0]
    faults.fill(FULL_EVERYWHERE, (Kind.WAL, Kind.DATABASE))
    post_orders(run.port, ledger, each=5)
    assert ledger.statuses == {202: 40}
    run.log.match("the batch stays in hand")
    assert run.left() == 40
    faults.empty()
    assert seconds_until(lambda: run.left() == 0, "worked off") < RECOVERY_S_MAX
    assert run.column("SELECT count(*) FROM orders")[0] == before + 40
    check(run, ledger)


@pytest.mark.alone
def test_a_disk_that_is_full_for_journal_and_database_loses_nothing(
    run: Rasher, faults: Faults, ledger: Ledger
) -> None:
    faults.fill(FULL_EVERYWHERE, EVERY - {Kind.JOURNAL})  # what a segment has, it keeps
    fill_journal(run, ledger)
    run.log.match("the batch stays in hand")
    left = run.left()
    assert left > 0
    assert run.popen.poll() is None
    faults.empty()
    begun = time.monotonic()
    run.until(lambda: accepted(run, ledger), "accepted again")
    run.until(lambda: run.left() == 0, "worked off")
    assert time.monotonic() - begun < RECOVERY_S_MAX
    assert run.log.count("another starts") == 0
    check(run, ledger)


def test_a_journal_that_can_not_be_begun_is_begun_when_there_is_space(
    faulty: Start, faults: Faults, ledger: Ledger
) -> None:
    faults.fill(kinds=JOURNAL)
    run = faulty(*FLAGS).ready()
    with closing(new_connection(run.port)) as connection:
        answer = order(connection, ledger)
    assert answer.status == 503
    assert "No space left on device" in answer.content["detail"]
    assert call(run, "GET", "/readyz")[0] == 503
    faults.empty()
    assert seconds_until(lambda: accepted(run, ledger), "accepted") < RECOVERY_S_MAX
    check(run, ledger)


def test_a_start_on_a_full_disk_says_so(faulty: Start, faults: Faults, data_dir: Path) -> None:
    faults.fill()
    for _ in range(2):
        run = faulty(*FLAGS)
        assert run.end() == 3
        assert run.log.said[-1].startswith(f"rasher: --data-dir {data_dir}: No space left on")
    faults.empty()
    assert faulty(*FLAGS).ready().end(signal.SIGTERM) == 0


@pytest.mark.prove
def test_a_full_disk_at_a_later_start_says_so_and_keeps_the_ring(
    run: Rasher, faulty: Start, faults: Faults, ledger: Ledger, data_dir: Path
) -> None:
    worker = run.child("worker")
    worker.suspend()
    post_orders(run.port, ledger, each=2)
    run.signal(signal.SIGKILL)
    worker.kill()
    run.end()
    faults.fill()
    again = faulty(*FLAGS)
    assert again.end() == 3
    assert again.log.said[-1].startswith(f"rasher: --data-dir {data_dir}: No space left on")
    faults.empty()
    check(faulty(*FLAGS).ready(), ledger)


def test_a_read_only_data_dir_is_named(faulty: Start, faults: Faults, data_dir: Path) -> None:
    assert faulty(*FLAGS).ready().end(signal.SIGTERM) == 0
    faults.told.read_only = 1
    run = faulty(*FLAGS)
    assert run.end() == 3
    assert run.log.said == [
        f"rasher: --data-dir {data_dir}: Read-only file system: {data_dir}/rasher.pid"
    ]


@pytest.mark.prove
def test_a_journal_that_turns_read_only_is_no_room(
    run: Rasher, faults: Faults, ledger: Ledger
) -> None:
    faults.told.read_only = 1
    assert "Read-only file system" in fill_journal(run, ledger)
    faults.told.read_only = 0
    assert seconds_until(lambda: accepted(run, ledger), "accepted again") < RECOVERY_S_MAX
    check(run, ledger)


def test_a_full_ring_dir_is_said_with_the_bytes_that_are_wanted(rasher: Start) -> None:
    run = rasher("--capacity", "100000", "--slot-bytes", "1048576")
    assert run.end() == 3
    assert "bytes" in run.log.said[-1]
    assert "--ring-dir" in run.log.said[-1]


def test_a_front_without_descriptors_answers_who_is_there(run: Rasher, ledger: Ledger) -> None:
    front = run.child("front")
    limits = front.rlimit(resource.RLIMIT_NOFILE)
    with closing(new_connection(run.port)) as connection:
        assert order(connection, ledger).status == 202
        front.rlimit(resource.RLIMIT_NOFILE, (NO_MORE, limits[1]))
        statuses = [order(connection, ledger).status for _ in range(ORDERS_MAX)]
        assert set(statuses) == {202, 503}
        segments = len(list((run.data_dir / "journal").iterdir()))
        run.log.match("Too many open files")
        front.rlimit(resource.RLIMIT_NOFILE, limits)
        begun = time.monotonic()
        run.until(lambda: order(connection, ledger).status == 202, "accepted again")
        assert time.monotonic() - begun < RECOVERY_S_MAX
    assert segments <= 2, "what could not be made whole stays"
    assert run.child("front") == front
    check(run, ledger)


@pytest.mark.prove
def test_a_worker_without_descriptors_goes_on(run: Rasher, ledger: Ledger) -> None:
    worker = run.child("worker")
    post_orders(run.port, ledger, each=1)
    run.until(lambda: run.left() == 0, "a connection to the database")
    limits = worker.rlimit(resource.RLIMIT_NOFILE)
    worker.rlimit(resource.RLIMIT_NOFILE, (NO_MORE, limits[1]))
    post_orders(run.port, ledger, each=20)
    sealed = list((run.data_dir / "journal").glob("*.sealed"))
    assert sealed, "there is something to be removed"
    run.until(lambda: run.left() == 0, "all worked off")
    checked_at = time.monotonic()
    run.until(lambda: time.monotonic() > checked_at + 1.5, "a look at the journal")
    worker.rlimit(resource.RLIMIT_NOFILE, limits)
    run.until(lambda: not any(path.exists() for path in sealed), "the journal tidied up")
    assert run.child("worker") == worker
    check(run, ledger)


def test_the_soft_limit_of_descriptors_is_raised_at_the_start(rasher: Start) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        run = rasher("--max-connections", "1000").ready()
        assert run.child("front").rlimit(resource.RLIMIT_NOFILE)[0] > 1000
        assert run.end(signal.SIGTERM) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_clock_that_is_set_breaks_nothing(run: Rasher, faults: Faults, ledger: Ledger) -> None:
    for hours in (0, -1, 1, 0):
        faults.told.clock_ns = hours * 3600 * 10**9
        begun = time.monotonic()
        post_orders(run.port, ledger, each=10)
        assert time.monotonic() - begun < PATIENCE_S / 3
        run.until(lambda: run.left() == 0, "all worked off")
        assert call(run, "GET", "/readyz") == (200, {"status": "ready", "degraded": []})
    assert ledger.statuses == {202: 320}
    assert not run.log.count("error|critical|another starts")
    check(run, ledger)
