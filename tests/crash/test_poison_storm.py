"""One order in ten thousand means harm: it is found, and everybody else hardly notices."""

from __future__ import annotations

import itertools
import json
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.crash.test_poison import order
from tests.crash.wicked import FOUND
from tests.program import ROOT, Client, Rasher, Start, clean_environ, verb

RATE = 1_000
DURATION_S = 120
ONE_IN = 10_000
ORDER_TIMEOUT_S = 2
# What an order may wait for others of its batch: a crash, or a loop and the next worker's start.
CRASH_S, START_S = 2.0, 2.0
WORK = ("--workers", "2", "--processor", "tests.crash.wicked:wicked")
FLAGS = (*WORK, "--order-timeout", str(ORDER_TIMEOUT_S))


@dataclass
class Seen:
    """report: of the load. waits_ms: from being accepted to the commit, of ordinary orders."""

    report: dict[str, Any]
    waits_ms: list[float]
    poison: dict[str, str] = field(default_factory=dict)  # id -> kind
    dead: set[str] = field(default_factory=set)

    def tell(self, what: str) -> None:
        waits = sorted(self.waits_ms)
        middle, late = statistics.median(waits), waits[len(waits) * 99 // 100]
        sys.stdout.write(
            f"\n{what}: {len(waits)} ordinary orders, accepted to committed p50 "
            f"{middle:.1f} ms, p99 {late:.0f}, longest {waits[-1]:.0f}; answers "
            f"{self.report['statuses']}, latency {self.report['latency']}; "
            f"poison {len(self.poison)}, dead {len(self.dead)}\n"
        )


@contextmanager
def poisoner(run: Rasher, into: dict[str, str], every_s: float) -> Iterator[None]:
    """Posts one of each kind, in turn."""
    end = threading.Event()

    def post() -> None:
        client, kinds = Client(run), itertools.cycle(FOUND)
        with closing(client.connection):
            while not end.wait(every_s):
                kind = next(kinds)
                status, answer = client.sure_call("POST", "/orders", order(kind))
                if status == 202:
                    into[answer["order_id"]] = kind

    thread = threading.Thread(target=post)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def load(run: Rasher, seconds: float, ledger: Path) -> dict[str, Any]:
    words = [sys.executable, "supervisor.py", "load", "--url", f"http://127.0.0.1:{run.port}"]
    words += ["--rate", str(RATE), "--duration", str(seconds), "--json", "--ledger", str(ledger)]
    ran = subprocess.run(
        words, cwd=ROOT, env=clean_environ(), capture_output=True, text=True, check=False
    )
    report: dict[str, Any] = json.loads(ran.stdout)
    return report


def through(rasher: Start, tmp_path: Path, seconds: float, *, poisoned: bool) -> Seen:
    run = rasher(*FLAGS).ready()
    client = Client(run)
    with closing(client.connection):
        client.stock("1000000")
    poison: dict[str, str] = {}
    ledger = tmp_path / f"ledger-{poisoned}"
    with poisoner(run, poison, ONE_IN / RATE if poisoned else seconds * 10):
        report = load(run, seconds, ledger)
    deadline = time.monotonic() + 120
    while run.left() and time.monotonic() < deadline:
        threading.Event().wait(0.1)
    assert run.end(signal.SIGTERM) == 0
    audit = verb(run, "audit", "--ledger", str(ledger))
    assert audit.returncode == 0, audit.stdout
    rows = run.rows("SELECT lower(hex(id)), status, committed_us - accepted_us FROM orders")
    dead = {one for one, status, _ in rows if status == "dead"}
    plain = {one.replace("-", "") for one in poison}
    waits = [wait / 1000 for one, _, wait in rows if one not in plain]
    return Seen(report, waits, {one.replace("-", ""): kind for one, kind in poison.items()}, dead)


@pytest.mark.prove
@pytest.mark.alone
@pytest.mark.timeout(900)
def test_poison_makes_dead_letters_of_itself_and_of_nothing_else(
    launch: Any, rasher: Start, tmp_path: Path, data_dir: Path
) -> None:
    calm = through(rasher, tmp_path, DURATION_S / 4, poisoned=False)
    calm.tell("without poison")
    for path in sorted(data_dir.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    seen = through(rasher, tmp_path, DURATION_S, poisoned=True)
    seen.tell("one in ten thousand")
    assert set(seen.poison.values()) == set(FOUND)
    assert seen.dead == set(seen.poison)
    assert set(seen.report["statuses"]) <= {"202", "503"}
    assert statistics.median(seen.waits_ms) <= 2 * statistics.median(calm.waits_ms)
    assert max(seen.waits_ms) <= 1000 * (ORDER_TIMEOUT_S + CRASH_S + START_S)
