"""A flash sale on the whole program, by its public face, while its processes are killed."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.postgres import Postgres
from tests.program import PATIENCE_S, ROOT, Rasher, Start, clean_environ, verb

SKUS = 20
LOTS_OF_A_SKU = 10
EXPIRY_DAYS = 28


def write_lots(path: Path, pounds: int) -> None:
    """SKUS * LOTS_OF_A_SKU lots of so many pounds, one a line."""
    with path.open("w", encoding="ascii") as file:
        for number in range(SKUS * LOTS_OF_A_SKU):
            day = 1 + number * 7 % EXPIRY_DAYS
            lot = {
                "lot_id": f"L{number:04}",
                "sku": f"SKU-{number % SKUS:02}",
                "quantity": str(pounds),
                "expires_at": f"2126-02-{day:02}T00:00:00Z",
            }
            file.write(json.dumps(lot) + "\n")


def begin_load(run: Rasher, ledger: Path, orders: int, rate: int) -> subprocess.Popen[str]:
    words = ["load", "--url", f"http://127.0.0.1:{run.port}", "--rate", str(rate)]
    words += ["--duration", str(orders / rate), "--connections", "64", "--ledger", str(ledger)]
    return subprocess.Popen(
        [sys.executable, "supervisor.py", *words],
        cwd=ROOT,
        env=clean_environ(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )


def kill_at(run: Rasher, role: str, orders: int, accepted: Callable[[], int]) -> None:
    """Kills a child once so many orders were accepted, and waits for the next one."""
    run.until(lambda: accepted() >= orders, f"{orders} orders in the ring")
    victim = run.child(role)
    victim.kill()
    run.replaced(victim, role)


def real_run(rasher: Start, folder: Path, orders: int, rate: int, *flags: str) -> list[str]:
    """-> what the program said: lots entered, load, audit. `flags`: for all its verbs."""
    lots, ledger = folder / "lots.ndjson", folder / "ledger.txt"
    # Twice what is ordered: what an order asks for is then decided by the order of use alone.
    write_lots(lots, max(1, 2 * orders // (SKUS * LOTS_OF_A_SKU)))
    run = rasher("--workers", "2", *flags).ready()
    entered = verb(run, "lots", "add", "--file", str(lots), *flags)
    assert entered.returncode == 0, entered
    load = begin_load(run, ledger, orders, rate)
    with run.ring() as ring:
        kill_at(run, "worker", orders // 4, lambda: ring.tail)
        kill_at(run, "front", orders // 2, lambda: ring.tail)
    said = load.communicate(timeout=PATIENCE_S + 2 * orders / rate)[0]
    assert load.returncode == 0, said
    assert run.end(signal.SIGTERM) == 0
    audit = verb(run, "audit", "--ledger", str(ledger), *flags)
    assert audit.returncode == 0, audit.stdout
    assert audit.stdout.startswith("audit: ok")
    answers = re.search(r"accepted +([\d,]+)", said)
    assert answers is not None
    # The front that was killed may have left a connection's worth of orders without an answer.
    assert int(answers[1].replace(",", "")) >= orders - 64
    return [entered.stdout, said, audit.stdout]


def test_killed_worker_and_front_lose_nothing_under_load(rasher: Start, tmp_path: Path) -> None:
    real_run(rasher, tmp_path, orders=1_000, rate=300)


@pytest.mark.prove
def test_killed_worker_and_front_lose_nothing_on_postgresql(
    rasher: Start, tmp_path: Path, postgres: Postgres
) -> None:
    database = postgres.url(postgres.database())
    real_run(rasher, tmp_path, 300, 200, "--database", database)


@pytest.mark.prove
@pytest.mark.timeout(300)
def test_ten_thousand_orders_with_a_worker_and_a_front_killed(
    rasher: Start, tmp_path: Path
) -> None:
    said = real_run(rasher, tmp_path, orders=10_000, rate=500)
    sys.stdout.write("\nA real run: 10,000 orders, a worker and a front killed meanwhile\n")
    sys.stdout.write("".join(said))
