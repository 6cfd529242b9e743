"""The machine goes down: every process is gone and what was in memory with them; disks stay.

Here the page cache stays, too: what a power loss takes of that is tests/crash/power's question.
"""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest

from tests.crash.test_real_run import begin_load, write_lots
from tests.program import PATIENCE_S, Rasher, Start, verb
from tests.supervisor.kit import kill_everything

RATE = 500


def answered(ledger: Path) -> list[str]:
    lines = ledger.read_text().split("\n")
    return [line.split()[0] for line in lines if line.endswith(" 202")]


def loaded(rasher: Start, folder: Path, orders: int, *flags: str) -> tuple[Rasher, Path]:
    """A run in which half of the orders were worked on, and the other half waits."""
    lots, ledger = folder / "lots.ndjson", folder / "ledger.txt"
    write_lots(lots, orders)
    run = rasher("--workers", "2", "--capacity", str(orders), "--segment-bytes", "65536", *flags)
    run.ready()
    assert verb(run, "lots", "add", "--file", str(lots)).returncode == 0
    load = begin_load(run, ledger, orders, RATE)
    with run.ring() as ring:
        run.until(lambda: ring.tail > orders // 2, "half of the orders")
        for worker in run.children("worker").values():
            worker.suspend()
        load.communicate(timeout=PATIENCE_S + 2 * orders / RATE)
        assert ring.depth > orders // 4
    return run, ledger


def machine_goes_down(run: Rasher) -> None:
    ring = run.ring_path()
    kill_everything(run)
    ring.unlink()


def settled(run: Rasher, count: int) -> bool:
    """Waits until the database has so many orders; False: it stays at fewer."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if run.column("SELECT COUNT(*) FROM orders")[0] >= count:
            return True
        threading.Event().wait(0.05)
    return False


def reboot(rasher: Start, folder: Path, orders: int) -> int:
    """-> how many were answered before and allocated after it."""
    run, ledger = loaded(rasher, folder, orders)
    ids = answered(ledger)
    assert len(ids) == orders
    machine_goes_down(run)
    # The next one has a ring that holds a tenth of what is to be put back, and is killed at it.
    second = rasher("--capacity", str(orders // 20), "--workers", "1")
    second.log.match(r"putting back [0-9]+ orders from the journal")
    machine_goes_down(second)
    third = rasher("--workers", "2", "--capacity", "100").ready()
    assert settled(third, orders)
    audit = verb(third, "audit", "--ledger", str(ledger))
    assert audit.returncode == 0, audit.stdout
    assert third.end(signal.SIGTERM) == 0
    assert third.column("SELECT COUNT(*) FROM orders WHERE status = 'allocated'") == [orders]
    assert not list((third.data_dir / "journal").iterdir())
    return len(ids)


def test_after_a_reboot_every_answered_order_is_allocated(rasher: Start, tmp_path: Path) -> None:
    assert reboot(rasher, tmp_path, 400) == 400


@pytest.mark.prove
@pytest.mark.timeout(600)
def test_after_a_reboot_every_answered_order_is_allocated_of_many(
    rasher: Start, tmp_path: Path
) -> None:
    count = reboot(rasher, tmp_path, 20_000)
    print(f"\nThe reboot: {count:,} orders answered, all allocated after two of them")


@pytest.mark.prove
def test_without_a_journal_a_reboot_loses_orders(rasher: Start, tmp_path: Path) -> None:
    run, ledger = loaded(rasher, tmp_path, 400, "--durability", "memory")
    machine_goes_down(run)
    again = rasher("--workers", "1").ready()
    audit = verb(again, "audit", "--ledger", str(ledger))
    assert audit.returncode == 1
    assert "was answered 202 and is gone" in audit.stdout
