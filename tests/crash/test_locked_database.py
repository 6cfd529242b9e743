"""SQLite held by somebody else: orders are taken in until the ring is full, then they wait, then
they get 503; it goes on by itself."""

from __future__ import annotations

import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import NamedTuple

import pytest

from tests.crash.disk import REFUSED, Answer, Ledger, new_connection, order
from tests.program import EXPIRY, Rasher, Start, call, verb

FULL_S = 1.0
RESUMED_S = 5.0
CAPACITY = 200
SENDERS = 16
RING = ("--capacity", str(CAPACITY), "--full-timeout", str(FULL_S))
# A lock is waited for an eighth of the time of an order before anybody is told.
FLAGS = ("--workers", "2", "--order-timeout", "8", *RING)
# Of SQLite's WAL index: one byte to write, one to bring the WAL in, one to recover, five to read.
ALL_LOCKS = """
import fcntl, sys
with open(sys.argv[1], "r+b") as index:
    fcntl.lockf(index, fcntl.LOCK_EX, 1, 120)
    fcntl.lockf(index, fcntl.LOCK_EX, 7, 121)
    print("held", flush=True)
    sys.stdin.read()
"""
Lock = Callable[[Rasher], AbstractContextManager[None]]


class Answered(NamedTuple):
    """When, after how many seconds, what."""

    at: float
    took_s: float
    answer: Answer


class Senders:
    """Each orders without an own id, one after the other, as fast as it is answered."""

    def __init__(self, run: Rasher, ledger: Ledger) -> None:
        self._port, self._ledger = run.port, ledger
        self._over = threading.Event()
        self.answered: list[Answered] = []
        self._threads = [threading.Thread(target=self._send) for _ in range(SENDERS)]

    def __enter__(self) -> Senders:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _send(self) -> None:
        with closing(new_connection(self._port)) as connection:
            while not self._over.is_set():
                begun = time.monotonic()
                answer = order(connection, self._ledger, own_id=False)
                now = time.monotonic()
                self.answered.append(Answered(now, now - begun, answer))

    def refused(self) -> list[Answered]:
        return [one for one in self.answered if one.answer.status == REFUSED]


@contextmanager
def nobody_writes(run: Rasher) -> Iterator[None]:
    with closing(sqlite3.connect(run.data_dir / "rasher.db", isolation_level=None)) as other:
        other.execute("PRAGMA busy_timeout=20000")
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("COMMIT")


@contextmanager
def nobody_reads(run: Rasher) -> Iterator[None]:
    """All that can be locked, as by one who recovers the WAL. In a process of its own: ours opens
    the database, too, and lost its locks as it closed it."""
    words = [sys.executable, "-c", ALL_LOCKS, str(run.data_dir / "rasher.db-shm")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        yield
        other.communicate()
        assert other.returncode == 0


def committed(run: Rasher) -> int:
    return int(run.column("SELECT count(*) FROM orders")[0])


def names_the_database(run: Rasher) -> bool:
    status, content = call(run, "GET", "/readyz?verbose")
    if status == 200:
        return "database" in content["degraded"]
    return "database does not answer" in content["detail"]


def post(run: Rasher, order_id: str) -> tuple[int, str]:
    """-> the status, and what the answer said."""
    lines = [{"sku": "BELLY", "quantity": "1.5"}]
    body = {"order_id": order_id, "customer": "Funky Foods", "lines": lines}
    status, content = call(run, "POST", "/orders", body)
    return status, str(content)


def wait_out(run: Rasher, senders: Senders, lock: Lock, lock_s: float, known: str) -> str:
    """-> what is to be told of it."""
    answers = len(senders.answered)
    run.until(lambda: len(senders.answered) > answers + 20, "orders on their way")
    ledger = senders._ledger
    refused = len(senders.refused())
    with run.ring() as ring, lock(run):
        begun = time.monotonic()
        run.until(lambda: ring.depth == CAPACITY, "the ring full")
        full = time.monotonic()
        assert {one.answer.status for one in senders.answered[answers:] if one.at < full} == {202}
        check_own_ids(run, lock, known)
        run.until(lambda: len(senders.refused()) >= refused + 2 * SENDERS, "503")
        for one in senders.refused()[refused:]:
            assert one.took_s > FULL_S * 0.99
            assert "(--full-timeout)" in one.answer.content["detail"]
            assert int(one.answer.headers["retry-after"]) > 0
        run.until(lambda: names_the_database(run), "the part that is down is named")
        taken = ledger.statuses[202]
        threading.Event().wait(max(0.0, begun + lock_s - time.monotonic()))
        assert ledger.statuses[202] <= taken + SENDERS
        held_s = time.monotonic() - begun
        taken = ledger.statuses[202]
    begun = time.monotonic()
    run.until(lambda: committed(run) >= taken, "all that was taken in settled")
    resumed_s = time.monotonic() - begun
    assert resumed_s < RESUMED_S
    run.until(lambda: not names_the_database(run), "nothing is down")
    return (
        f"{lock.__name__.replace('_', ' ')} for {held_s:.1f} s: {len(senders.refused()) - refused}"
        f" orders refused, the backlog settled {resumed_s:.2f} s after\n"
    )


def check_own_ids(run: Rasher, lock: Lock, known: str) -> None:
    """They are compared with what can be read; what can't be compared is refused."""
    status, said = post(run, known)
    if lock is nobody_writes:
        assert (status, "allocated" in said) == (202, True), said
    else:
        assert (status, "the database is not available" in said) == (REFUSED, True), said
        assert call(run, "GET", f"/orders/{known}")[0] == REFUSED
        status, said = post(run, str(uuid.uuid4()))
        assert (status, "the database is not available" in said) == (REFUSED, True), said


def go_through(rasher: Start, ledger: Ledger, locks: list[Lock], lock_s: float) -> None:
    run = rasher(*FLAGS).ready()
    lot = {"sku": "BELLY", "quantity": "100000000", "expires_at": EXPIRY}
    assert call(run, "POST", "/lots", lot)[0] == 201
    known = str(uuid.uuid4())
    assert post(run, known)[0] == 202
    ledger.note(known, 202)
    with Senders(run, ledger) as senders:
        told = [wait_out(run, senders, lock, lock_s, known) for lock in locks]
    run.until(lambda: not run.left(), "all settled")
    assert committed(run) == ledger.statuses[202]
    assert run.end(signal.SIGTERM) == 0
    audit = verb(run, "audit", "--ledger", str(ledger.path))
    assert audit.returncode == 0, audit.stdout
    assert run.column("SELECT DISTINCT status FROM orders") == ["allocated"]
    answered = re.search(r"([\d,]+) ledger: answered", audit.stdout)
    assert answered is not None
    assert int(answered[1].replace(",", "")) == ledger.statuses[202]
    counts = f"{ledger.statuses[202]} orders answered 202, lost 0, twice 0\n"
    sys.stdout.write("\n" + "".join(told) + counts)


def test_a_locked_database_is_waited_out(rasher: Start, ledger: Ledger) -> None:
    go_through(rasher, ledger, [nobody_writes], 2)


@pytest.mark.prove
@pytest.mark.timeout(300)
def test_a_database_that_is_locked_for_half_a_minute_is_waited_out(
    rasher: Start, ledger: Ledger
) -> None:
    go_through(rasher, ledger, [nobody_writes, nobody_reads], 30)
