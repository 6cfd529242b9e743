"""Everybody wants the same: one sku, stock for three in five, and processes are killed."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from tests.program import EXPIRY, PATIENCE_S, ROOT, Client, Rasher, Start, clean_environ, verb

SKU = "BELLY"
# Pieces of a lot; every order asks for one. All have the same expiry, so that ids decide.
LOT = 50
CONNECTIONS = 64


class Sale(NamedTuple):
    orders: int
    stock: int
    fronts: int
    workers: int
    kills: int

    @property
    def flags(self) -> list[str]:
        counts = ["--fronts", str(self.fronts), "--workers", str(self.workers)]
        return [*counts, "--capacity", "1000"]

    def mark(self, number: int) -> int:
        """How many orders are in at that kill; each may keep one a connection from getting in."""
        reached = self.orders - self.kills * CONNECTIONS
        return reached * (number + 1) // (self.kills + 1)

    def victim(self, number: int) -> str:
        """Two workers, then a front, each in its turn."""
        if number % 3 == 1:
            return f"rasher front {number // 3 % self.fronts}"
        return f"rasher worker {(number - (number + 1) // 3) % self.workers}"


def enter_stock(run: Rasher, pieces: int) -> None:
    client = Client(run)
    with closing(client.connection):
        for number in range(0, pieces, LOT):
            lot = {
                "lot_id": f"L{number:07}",
                "sku": SKU,
                "quantity": min(LOT, pieces - number),
                "expires_at": EXPIRY,
            }
            assert client.call("POST", "/lots", lot)[0] == 201


@contextmanager
def load(run: Rasher, count: int, ledger: Path) -> Iterator[None]:
    """At full speed; at its end all is answered, or will never be."""
    words = [sys.executable, "supervisor.py", "load", "--url", f"http://127.0.0.1:{run.port}"]
    words += ["--rate", str(count), "--duration", "1", "--connections", str(CONNECTIONS)]
    words += ["--skus", SKU, "--ledger", str(ledger)]
    with subprocess.Popen(
        words, cwd=ROOT, env=clean_environ(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as sender:
        try:
            yield
            # 0, or 1: some got no answer.
            assert sender.wait(PATIENCE_S + count / 50) in (0, 1)
        finally:
            sender.kill()


def kill_in_turn(run: Rasher, sale: Sale) -> None:
    """Spread over the orders as they come in."""
    with run.ring() as ring:
        for number in range(sale.kills):
            mark = sale.mark(number)
            run.until(lambda mark=mark: ring.tail >= mark, f"{mark} orders in")  # type: ignore[misc]
            the_child(run, sale.victim(number)).kill()


def the_child(run: Rasher, title: str) -> psutil.Process:
    """Waits for it, while the supervisor may be pausing."""
    there: dict[str, psutil.Process] = {}

    def is_there() -> bool:
        there.update(run.children())
        return title in there

    run.until(is_there, title)
    return there[title]


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


def hold(sale: Sale, rasher: Start, database: list[str], tmp_path: Path) -> None:
    run = rasher(*sale.flags, *database).ready()
    enter_stock(run, sale.stock)
    ledger = tmp_path / "ledger"
    begun = time.monotonic()
    with load(run, sale.orders, ledger):
        kill_in_turn(run, sale)
    missing = send_again(run, ledger)
    run.until(lambda: not run.left(), "all settled")
    seconds = time.monotonic() - begun
    assert run.end(signal.SIGTERM) == 0
    counts = dict(run.rows("SELECT status, count(*) FROM orders GROUP BY status"))
    assert counts == {"allocated": sale.stock, "rejected": sale.orders - sale.stock}
    assert run.column("SELECT count(*) FROM lots WHERE available <> 0") == [0]
    audit = verb(run, "audit", "--ledger", str(ledger), *database)
    assert audit.returncode == 0, audit.stdout
    answered = re.search(r"([\d,]+) ledger: answered", audit.stdout)
    assert answered is not None
    assert int(answered[1].replace(",", "")) == sale.orders
    sys.stdout.write(
        f"\n{sale.orders} orders for one sku, stock for {sale.stock}, "
        f"{'PostgreSQL' if database else 'SQLite'}: {counts['allocated']} allocated, "
        f"{counts['rejected']} rejected, {sale.kills} kills, {missing} sent again, "
        f"{sale.orders / seconds:.0f} orders/s\n"
    )


def test_a_hot_sku_is_given_out_to_the_last_piece_and_no_further(
    rasher: Start, database: list[str], tmp_path: Path
) -> None:
    hold(Sale(1_000, 600, fronts=1, workers=2, kills=2), rasher, database, tmp_path)


@pytest.mark.prove
@pytest.mark.timeout(1200)
def test_a_hundred_thousand_orders_for_one_sku(
    rasher: Start, database: list[str], tmp_path: Path
) -> None:
    hold(Sale(100_000, 60_000, fronts=2, workers=4, kills=120), rasher, database, tmp_path)
