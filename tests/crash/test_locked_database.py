"""SQLite held by somebody else: taken in until the ring is full, then waits, then 503; goes on by
itself."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.program import ROOT, Rasher, Start, call, clean_environ, verb

FULL_S = 1.0
RESUMED_S = 5.0
CAPACITY = 200
RING = ("--capacity", str(CAPACITY), "--full-timeout", str(FULL_S))
# A lock is waited for an eighth of the time of an order before anybody is told.
FLAGS = ("--workers", "2", "--order-timeout", "8", *RING)


@contextmanager
def locked(run: Rasher) -> Iterator[None]:
    with closing(sqlite3.connect(run.data_dir / "rasher.db", isolation_level=None)) as other:
        other.execute("PRAGMA busy_timeout=20000")
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("COMMIT")


@contextmanager
def loaded(run: Rasher, rate: int, seconds: float, ledger: Path) -> Iterator[None]:
    words = [sys.executable, "supervisor.py", "load", "--url", f"http://127.0.0.1:{run.port}"]
    words += ["--rate", str(rate), "--duration", str(seconds), "--ledger", str(ledger)]
    words += ["--skus", "BELLY", "--json", "--connections", "512"]
    load = subprocess.Popen(
        words, cwd=ROOT, env=clean_environ(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        yield
        said = load.communicate(timeout=seconds + 60)[0]
        assert set(json.loads(said)["statuses"]) <= {"202", "503"}
    finally:
        load.kill()
        load.wait()


def degraded(run: Rasher) -> list[str]:
    return list(call(run, "GET", "/readyz?verbose")[1]["degraded"])


def names_the_database(run: Rasher) -> bool:
    status, content = call(run, "GET", "/readyz?verbose")
    said = content["degraded"] if status == 200 else content["detail"]
    return "database" in str(said)


def committed(run: Rasher) -> int:
    return int(run.column("SELECT count(*) FROM orders")[0])


def through(rasher: Start, tmp_path: Path, lock_s: float) -> None:
    run = rasher(*FLAGS).ready()
    lot = {"sku": "BELLY", "quantity": "1000000", "expires_at": "2126-01-01T00:00:00Z"}
    assert call(run, "POST", "/lots", lot)[0] == 201
    ledger = tmp_path / "ledger"
    with loaded(run, 300, lock_s + 4, ledger):
        run.until(lambda: committed(run) > 20, "orders on their way")
        with locked(run):
            before = committed(run)
            until = time.monotonic() + lock_s
            run.until(lambda: run.left() >= CAPACITY, "the ring full")
            lines = [{"sku": "BELLY", "quantity": 1}]
            own = {"order_id": str(uuid.uuid4()), "customer": "c", "lines": lines}
            assert call(run, "POST", "/orders", own)[0] == 503
            run.until(lambda: names_the_database(run), "the part that is down is named")
            threading.Event().wait(max(0.0, until - time.monotonic()))
            assert committed(run) == before
        begun = time.monotonic()
        run.until(lambda: committed(run) >= before + CAPACITY, "the backlog settled")
        resumed_s = time.monotonic() - begun
    run.until(lambda: not run.left(), "all settled")
    assert not degraded(run)
    assert resumed_s < RESUMED_S
    assert run.end(signal.SIGTERM) == 0
    audit = verb(run, "audit", "--ledger", str(ledger))
    assert audit.returncode == 0, audit.stdout
    sys.stdout.write(f"\nlocked for {lock_s:g} s, the backlog settled {resumed_s:.2f} s after\n")


def test_a_locked_database_is_waited_out(rasher: Start, tmp_path: Path) -> None:
    through(rasher, tmp_path, 3)


@pytest.mark.prove
@pytest.mark.alone
@pytest.mark.timeout(300)
def test_a_database_that_is_locked_for_half_a_minute_is_waited_out(
    rasher: Start, tmp_path: Path
) -> None:
    through(rasher, tmp_path, 30)
