"""A whole market at once: orders for many skus, a few of them in every batch, while lots come in,
are corrected, recalled and expire, and processes are killed."""

from __future__ import annotations

import json
import random
import signal
import sys
import threading
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.crash.clients import Load
from tests.program import EXPIRY, Client, Rasher, Start, verb

# Of the orders' skus; lots of these expire in seconds, so that stock runs low.
HOT = [f"HOT-{number}" for number in range(10)]
HOT_SHARE = 0.8
LOW = 50


class Market(NamedTuple):
    skus: int
    lots_of_a_sku: int
    rate: int
    errands: int
    workers: int
    fronts: int
    kills: int

    @property
    def names(self) -> list[str]:
        return [*HOT, *(f"S{number}" for number in range(self.skus - len(HOT)))]

    def ordered(self, chance: random.Random) -> list[str]:
        """What orders choose from: each of some cold ones once, the hot ones again and again."""
        cold = chance.sample(self.names[len(HOT) :], min(1000, self.skus - len(HOT)))
        hot = round(len(cold) * HOT_SHARE / (1 - HOT_SHARE))
        return cold + [HOT[number % len(HOT)] for number in range(hot)]


def enter_lots(run: Rasher, market: Market, folder: Path) -> None:
    lots = (
        {"lot_id": f"{sku}-{number}", "sku": sku, "quantity": "20", "expires_at": EXPIRY}
        for sku in market.names
        for number in range(market.lots_of_a_sku)
    )
    file = folder / "lots.ndjson"
    with file.open("w") as out:
        out.writelines(json.dumps(lot) + "\n" for lot in lots)
    database = run.words_of("--database")
    entered = verb(run, "lots", "add", "--file", str(file), *database, patience_s=900)
    assert entered.returncode == 0, entered.stderr


class Clerk(threading.Thread):
    """Does one errand after the other: a lot that expires in a second or two comes in, one is
    corrected, one is recalled."""

    def __init__(self, run: Rasher, market: Market) -> None:
        super().__init__()
        self._run, self._market = run, market
        self._chance = random.Random(5)
        self._short: list[str] = []
        self.done: Counter[str] = Counter()

    def run(self) -> None:
        client = Client(self._run)
        with closing(client.connection):
            while self.done.total() < self._market.errands:
                what = self._chance.choices((self.receive, self.correct, self.recall), (10, 10, 1))[
                    0
                ]
                self.done[what(client)] += 1

    def receive(self, client: Client) -> str:
        ends = datetime.now(UTC) + timedelta(seconds=self._chance.uniform(0.5, 2))
        lot_id = f"short-{len(self._short)}"
        lot = {
            "lot_id": lot_id,
            "sku": self._chance.choice(HOT),
            "quantity": str(self._chance.randint(1, 90)),
            "expires_at": ends.isoformat(),
        }
        status, answer = client.sure_call("POST", "/lots", lot)
        assert status in (200, 201), answer  # 200: its answer was lost with a front
        self._short.append(lot_id)
        return "received"

    def a_lot(self) -> str:
        if self._short and self._chance.random() < 0.5:
            return self._chance.choice(self._short[-20:])
        sku = self._chance.choice(self._market.names)
        return f"{sku}-{self._chance.randrange(self._market.lots_of_a_sku)}"

    def correct(self, client: Client) -> str:
        delta = self._chance.choice((-1, 1)) * self._chance.randint(1, 30_000) / 1000
        body = {"delta": f"{delta:.3f}", "reason": "count"}
        path = f"/lots/{self.a_lot()}/adjustments"
        status, answer = client.sure_call("POST", path, body)
        assert status in (201, 409), answer
        return "corrected" if status == 201 else "not corrected"

    def recall(self, client: Client) -> str:
        status, answer = client.sure_call("POST", f"/lots/{self.a_lot()}/recall")
        assert status == 200, answer
        return "recalled"


def hold(market: Market, rasher: Start, database: list[str], tmp_path: Path) -> None:
    counts = ["--fronts", str(market.fronts), "--workers", str(market.workers)]
    run = rasher(*counts, "--low-stock", str(LOW), *database).ready()
    enter_lots(run, market, tmp_path)
    ledger, chance = tmp_path / "ledger", random.Random(3)
    load = Load(run.port, market.ordered(chance), market.rate, ledger, 7)
    clerk = Clerk(run, market)
    try:
        clerk.start()
        for number in range(market.kills):
            mark = market.errands * (number + 1) // (market.kills + 1)
            while clerk.done.total() < mark and clerk.is_alive():
                clerk.join(0.02)
            role = "worker" if number % 2 else "front"
            index = number // 2 % (market.workers if number % 2 else market.fronts)
            run.until(lambda r=role, i=index: f"rasher {r} {i}" in run.children(r), role)  # type: ignore[misc]
            run.child(role, index).kill()
        clerk.join()
        assert clerk.done.total() == market.errands
        report = load.stop()
    except BaseException:
        load.kill()
        raise
    run.until(lambda: not run.left(), "all settled")
    late = "SELECT count(*) FROM lots WHERE expired_seq IS NULL AND lot_id LIKE 'short-%'"
    run.until(lambda: run.column(late) == [0], "every expiry noted")
    assert run.end(signal.SIGTERM) == 0
    told = dict(run.rows("SELECT type, count(*) FROM stock_events GROUP BY type"))
    assert told.keys() == {"stock.expired", "stock.low"}
    assert run.column("SELECT count(*) FROM movements WHERE kind = 'expire'") == [
        clerk.done["received"]
    ]
    audit = verb(run, "audit", "--ledger", str(ledger), *database, patience_s=600)
    assert audit.returncode == 0, audit.stdout
    outcomes = dict(run.rows("SELECT status, count(*) FROM orders GROUP BY status"))
    sys.stdout.write(
        f"\n{market.skus * market.lots_of_a_sku} lots of {market.skus} skus, "
        f"{'PostgreSQL' if database else 'SQLite'}: {outcomes}, {dict(clerk.done)}, {told}, "
        f"{market.kills} kills; sent {report['sent']}: audit ok\n"
    )


def test_stock_is_exact_while_lots_come_in_are_corrected_recalled_and_expire(
    rasher: Start, database: list[str], tmp_path: Path
) -> None:
    small = Market(40, 3, rate=200, errands=60, workers=2, fronts=1, kills=2)
    hold(small, rasher, database, tmp_path)


@pytest.mark.prove
@pytest.mark.timeout(2400)
def test_a_market_of_a_hundred_thousand_lots(
    rasher: Start, database: list[str], tmp_path: Path
) -> None:
    large = Market(10_000, 10, rate=500, errands=8_000, workers=4, fronts=2, kills=40)
    hold(large, rasher, database, tmp_path)
