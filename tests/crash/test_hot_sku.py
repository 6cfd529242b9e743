"""Everybody wants the same: one sku, stock for three in five, and processes are killed."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from tests.postgres import Postgres
from tests.program import ROOT, Client, Rasher, Start, clean_environ, verb

SKU = "BELLY"
# Of each order; every lot holds a number of them.
LOT = 50
EXPIRY = "2126-01-01T00:00:00Z"
RUN = ("--workers", "4", "--fronts", "2", "--capacity", "1000")


def enter_stock(run: Rasher, pieces: int, tmp_path: Path) -> None:
    """In many lots, all with the same expiry: the order of use is that of their ids."""
    file = tmp_path / "lots.ndjson"
    with file.open("w") as lines:
        for number in range(0, pieces, LOT):
            quantity = min(LOT, pieces - number)
            lot = {
                "lot_id": f"L{number:07}",
                "sku": SKU,
                "quantity": quantity,
                "expires_at": EXPIRY,
            }
            lines.write(json.dumps(lot) + "\n")
    database = run.words_of("--database")
    assert verb(run, "lots", "add", "--file", str(file), *database).returncode == 0


@contextmanager
def killing(run: Rasher, every_s: float) -> Iterator[list[str]]:
    """Kills a worker, a worker, a front, and so on -> the titles of those that were."""
    end, killed = threading.Event(), list[str]()

    def kill() -> None:
        for number in itertools.count():
            if end.wait(every_s):
                return
            role = "front" if number % 3 == 2 else "worker"
            children = sorted(run.children(role).items())
            if children:
                title, child = children[number % len(children)]
                killed.append(title)
                try:
                    child.kill()
                except psutil.NoSuchProcess:
                    continue

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        end.set()
        thread.join()


def send(run: Rasher, count: int, ledger: Path) -> float:
    """At full speed -> the seconds that it took."""
    words = [sys.executable, "supervisor.py", "load", "--url", f"http://127.0.0.1:{run.port}"]
    words += ["--rate", str(count), "--duration", "1", "--skus", SKU, "--ledger", str(ledger)]
    begun = time.monotonic()
    subprocess.run(words, cwd=ROOT, env=clean_environ(), capture_output=True, check=True)
    return time.monotonic() - begun


def send_again(run: Rasher, ledger: Path) -> int:
    """What got no answer, under its own id, until it has one -> how many those were."""
    missing = [line.split()[0] for line in ledger.read_text().splitlines() if line[-4:] != " 202"]
    client = Client(run)
    with closing(client.connection), ledger.open("a") as answers:
        for order_id in missing:
            order = {
                "order_id": order_id,
                "customer": "rasher load",
                "lines": [{"sku": SKU, "quantity": "1"}],
            }
            status, _ = client.sure_call("POST", "/orders", order)
            assert status == 202
            answers.write(f"{order_id} {status}\n")
    return len(missing)


@pytest.fixture(params=["sqlite", "postgresql"])
def flags(request: pytest.FixtureRequest) -> tuple[str, ...]:
    if request.param == "sqlite":
        return RUN
    server: Postgres = request.getfixturevalue("postgres")
    return (*RUN, "--database", server.url(server.database()))


def pairs(run: Rasher, query: str) -> dict[Any, Any]:
    """What a query of two columns gives."""
    if not run.words_of("--database"):
        return dict(run.rows(query))
    with psycopg.connect(run.words_of("--database")[1]) as connection:
        return dict(connection.execute(query.encode()).fetchall())


def through(
    rasher: Start,
    tmp_path: Path,
    flags: tuple[str, ...],
    *,
    orders: int,
    stock: int,
    every_s: float,
) -> None:
    run = rasher(*flags).ready()
    enter_stock(run, stock, tmp_path)
    ledger = tmp_path / "ledger"
    begun = time.monotonic()
    with killing(run, every_s) as killed:
        send(run, orders, ledger)
    missing = send_again(run, ledger)
    run.until(lambda: not run.left(), "all settled")
    seconds = time.monotonic() - begun
    assert run.end(signal.SIGTERM) == 0
    counts = pairs(run, "SELECT status, count(*) FROM orders GROUP BY status")
    assert counts == {"allocated": stock, "rejected": orders - stock}
    assert pairs(run, "SELECT sum(available), count(*) FROM lots") == {0: -(-stock // LOT)}
    audit = verb(run, "audit", "--ledger", str(ledger), *run.words_of("--database"))
    assert audit.returncode == 0, audit.stdout
    sys.stdout.write(
        f"\n{orders} orders for one sku, stock for {stock}: {stock} allocated, "
        f"{len(killed)} kills, {missing} sent again, {orders / seconds:.0f} orders/s\n"
    )


def test_a_hot_sku_is_given_out_to_the_last_piece_and_no_further(
    rasher: Start, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    through(rasher, tmp_path, flags, orders=1_500, stock=900, every_s=0.3)


@pytest.mark.prove
@pytest.mark.timeout(600)
def test_a_hundred_thousand_orders_for_one_sku(
    rasher: Start, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    through(rasher, tmp_path, flags, orders=100_000, stock=60_000, every_s=0.7)
