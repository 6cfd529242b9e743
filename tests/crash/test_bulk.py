"""Bulks of a whole program: constant memory, and what was told holds whatever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from rasher_client import Client, Counts, Refused
from tests.crash.bulk_sender import Report
from tests.program import ROOT, Rasher, Start, clean_environ, verb

SHORT, FULL = 5_000, int(os.environ.get("BULK_ORDERS", "1000000"))
MEMORY_GROWTH_KIB_MAX = 4096
AUDIT_S_MAX = 600


def send(run: Rasher, orders: int, ledger: Path, *words: str, seconds: float = 100) -> Report:
    command = [sys.executable, "-m", "tests.crash.bulk_sender", str(run.port), str(orders)]
    done = subprocess.run(
        [*command, str(ledger), *words], cwd=ROOT, env=clean_environ(), capture_output=True,
        text=True, timeout=seconds, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return msgspec.json.decode(done.stdout, type=Report)


def settled(run: Rasher, ledger: Path) -> str:
    """Waits until all is worked off, and audits it with the ledger -> what the audit says."""
    run.until(lambda: not run.left(), "all settled")
    audit = verb(run, "audit", "--ledger", str(ledger), patience_s=AUDIT_S_MAX)
    assert audit.returncode == 0, audit.stdout + audit.stderr
    return audit.stdout


def submitted_with_kills(run: Rasher, orders: int, kills: int) -> Counter[str]:
    """A client's bulk and single orders, the front killed while they are under way -> how often
    each reference was told to be in."""
    told: Counter[str] = Counter()

    def number(n: int) -> dict[str, object]:
        lines = [{"sku": "BELLY", "quantity": "1"}]
        return {"customer": "Funky Foods", "reference": f"client-{n}", "lines": lines}

    def kill_at_marks() -> None:
        for mark in marks:
            front = run.child("front")
            run.until(lambda mark=mark: told.total() >= mark, f"{mark} told")  # type: ignore[misc]
            front.kill()
            run.replaced(front, "front")

    singles = orders // 50
    marks = [(orders + singles) * place // (kills + 1) for place in range(1, kills + 1)]
    killer = threading.Thread(target=kill_at_marks)
    killer.start()
    with Client(f"http://127.0.0.1:{run.port}") as client:
        counts = client.submit_many(
            (number(n) for n in range(orders)),
            on_result=lambda one: told.update([str(one.order["reference"])]),
        )
        assert counts == Counts(accepted=orders)
        for n in range(orders, orders + singles):
            order_id = client.submit(number(n))["order_id"]
            told[f"client-{n}"] += 1
        assert client.wait(order_id)["status"] == "rejected"
        assert client.get(order_id)["reference"] == f"client-{orders + singles - 1}"
        with pytest.raises(Refused, match="409"):
            client.cancel(order_id)
    killer.join()
    return told


def kill_fronts(rasher: Start, ledger: Path, orders: int, kills: int) -> None:
    run = rasher("--workers", "1", "--capacity", "100").ready()
    taken = cut = 0
    for place in range(kills):
        front = run.child("front")
        after = orders * (place + 1) // (kills + 1)
        words = ["--kill", str(front.pid), "--after", str(after)]
        report = send(run, orders, ledger, *words)
        assert after <= report.taken < orders, report
        assert report.in_order
        taken, cut = taken + report.taken, cut + 1
        run.replaced(front, "front")
    settled(run, ledger)
    in_bulks = run.column("SELECT count(*) FROM orders")[0]
    assert in_bulks >= taken
    told = submitted_with_kills(run, orders, kills)
    said = settled(run, ledger)
    rows = Counter(run.column("SELECT reference FROM orders WHERE reference LIKE 'client-%'"))
    assert told == rows == Counter(dict.fromkeys(told, 1))
    assert run.end(signal.SIGTERM) == 0
    sys.stdout.write(
        f"\n{cut} bulks whose front was killed: {taken} ids told, all in the database, and"
        f" {in_bulks - taken} more; a client's {len(told)} orders with {kills} kills of its front:"
        f" once each\n{said}"
    )


def test_what_a_killed_bulk_told_is_in_and_a_client_goes_on_with_each_order_once(
    rasher: Start, tmp_path: Path
) -> None:
    kill_fronts(rasher, tmp_path / "ledger", SHORT, kills=1)


@pytest.mark.prove
@pytest.mark.timeout(1200)
def test_fronts_killed_in_the_middle_of_bulks_lose_nothing_that_was_told(
    rasher: Start, tmp_path: Path
) -> None:
    kill_fronts(rasher, tmp_path / "ledger", 4 * SHORT, kills=20)


def go_through(rasher: Start, ledger: Path, orders: int, *words: str) -> None:
    """One request of so many orders through 100 slots, in constant memory here and there."""
    run = rasher("--workers", "1", "--capacity", "100").ready()
    send(run, SHORT // 5, ledger, *words)  # what is allocated once
    front = run.child("front")
    before_kib = front.memory_info().rss // 1024
    cpu_s = sum(front.cpu_times()[:2])
    report = send(run, orders, ledger, *words, seconds=3000)
    cpu_s = sum(front.cpu_times()[:2]) - cpu_s
    grown_kib = front.memory_info().rss // 1024 - before_kib
    assert (report.taken, report.refused, report.whole) == (orders, 0, True)
    assert report.in_order
    assert grown_kib < MEMORY_GROWTH_KIB_MAX
    assert report.last_kib - report.first_kib < MEMORY_GROWTH_KIB_MAX
    said = settled(run, ledger)
    (count,) = run.column("SELECT count(*) FROM orders")
    assert count == orders + SHORT // 5
    assert run.end(signal.SIGTERM) == 0
    sys.stdout.write(
        f"\n{orders} orders in one request: {cpu_s / orders * 1e6:.1f} us of the front's CPU each;"
        f" the front grew by {grown_kib} KiB, the client by"
        f" {report.last_kib - report.first_kib} KiB after its first tenth\n{said}"
    )


@pytest.mark.prove
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("words", [[], ["--spooled"]], ids=["streamed", "spooled"])
def test_a_million_orders_go_through_a_hundred_slots_in_constant_memory(
    rasher: Start, tmp_path: Path, words: list[str]
) -> None:
    go_through(rasher, tmp_path / "ledger", FULL, *words)
