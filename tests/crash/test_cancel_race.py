"""Orders posted, cancelled and worked on at once, over two fronts, while fronts and workers are
killed: what was answered cancelled holds nothing, everything else counts once."""

from __future__ import annotations

import http.client
import json
import random
import signal
import sys
import threading
import uuid
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.program import EXPIRY, JSON, PATIENCE_S, Client, Rasher, Start, verb

AGAIN_S = 0.005
CLIENTS = 3
LOTS = 8
LINES = [{"sku": "BELLY", "quantity": "1"}]


@dataclass
class Customer(threading.Thread):
    """Posts orders of one piece, and cancels each second one: at once, or one of before."""

    run_: Rasher
    orders: int
    seed: int
    posted: list[str] = field(default_factory=list)
    verdicts: dict[str, int] = field(default_factory=dict)
    told: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        super().__init__()
        self.chance = random.Random(self.seed)
        self.failed: BaseException | None = None

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        try:
            while len(self.posted) < self.orders:
                order_id = str(uuid.UUID(int=self.chance.getrandbits(128)))
                body = {"order_id": order_id, "customer": "c", "lines": LINES}
                assert self.call("POST", "/orders", body)[0] == 202
                self.posted.append(order_id)
                if len(self.posted) % 2:
                    self.cancel(self.chance.choice([order_id, self.chance.choice(self.posted)]))
        except BaseException as error:
            self.failed = error
            raise

    def is_at(self, mark: int) -> bool:
        return len(self.posted) >= mark or self.failed is not None

    def cancel(self, order_id: str) -> None:
        status, content = self.call("DELETE", f"/orders/{order_id}")
        assert self.verdicts.setdefault(order_id, status) == status, content
        if status == 200:
            assert content["status"] == "cancelled"
            status, content = self.call("GET", f"/orders/{order_id}")
            assert (status, content["status"]) == (200, "cancelled")
        else:
            assert (status, "was rejected" in content["detail"]) == (409, True), content
        self.told[str(status)] += 1

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Until it is answered, on a connection of its own: another front may answer each."""
        for _ in range(int(PATIENCE_S / AGAIN_S)):
            connection = http.client.HTTPConnection("127.0.0.1", self.run_.port, timeout=PATIENCE_S)
            try:
                connection.request(method, path, json.dumps(body) if body else None, JSON)
                answer = connection.getresponse()
                content = json.loads(answer.read())
                if answer.status != 503:
                    return answer.status, content
            except (OSError, http.client.HTTPException):
                self.told["no answer"] += 1
            finally:
                connection.close()
            threading.Event().wait(AGAIN_S)
        raise AssertionError(f"no answer to {method} {path}")


class Rush(NamedTuple):
    orders: int
    kills: int
    recalls: int

    @property
    def pieces(self) -> int:
        return self.orders // LOTS * LOTS

    def hold(self, run: Rasher, customers: list[Customer]) -> None:
        """Kills and recalls, spread over the orders as they come in."""
        client, chance = Client(run), random.Random(7)
        with closing(client.connection):
            for number in range(self.kills):
                mark = self.orders // CLIENTS * (number + 1) // (self.kills + 1)
                for one in customers:
                    run.until(lambda one=one, mark=mark: one.is_at(mark), f"{mark} orders")  # type: ignore[misc]
                victims = run.children(("front", "worker")[number % 2])
                if victims:
                    victims[chance.choice(sorted(victims))].kill()
                if number < self.recalls:
                    assert client.sure_call("POST", f"/lots/L{number}/recall")[0] == 200


def stock(run: Rasher, pieces: int) -> None:
    client = Client(run)
    with closing(client.connection):
        for number in range(LOTS):
            lot = {"lot_id": f"L{number}", "sku": "BELLY", "quantity": pieces // LOTS}
            assert client.call("POST", "/lots", lot | {"expires_at": EXPIRY})[0] == 201


def go(rasher: Start, database: list[str], tmp_path: Path, rush: Rush) -> str:
    run = rasher("--fronts", "2", "--workers", "2", *database).ready()
    stock(run, rush.pieces)
    customers = [Customer(run, rush.orders // CLIENTS, seed) for seed in range(CLIENTS)]
    for customer in customers:
        customer.start()
    rush.hold(run, customers)
    for customer in customers:
        customer.join()
    assert not [customer.failed for customer in customers if customer.failed]
    run.until(lambda: not run.left(), "all settled")
    ledger = tmp_path / "ledger"
    ledger.write_text("".join(f"{one} 202\n" for each in customers for one in each.posted))
    audit = verb(run, "audit", "--ledger", str(ledger), *database)
    assert audit.returncode == 0, audit.stdout
    assert run.end(signal.SIGTERM) == 0
    return check(run, customers, rush)


def check(run: Rasher, customers: list[Customer], rush: Rush) -> str:
    counts = Counter(dict(run.rows("SELECT status, count(*) FROM orders GROUP BY status")))
    verdicts = {key: status for one in customers for key, status in one.verdicts.items()}
    assert counts.total() == sum(len(one.posted) for one in customers)
    assert counts["cancelled"] == sum(status == 200 for status in verdicts.values())
    left = 1000 * (rush.pieces - counts["allocated"])
    assert run.column("SELECT sum(available) FROM lots") == [left]
    ((returned,),) = run.rows("SELECT count(*) FROM movements WHERE kind = 'return'")
    again = sum(one.told["no answer"] for one in customers)
    return (
        f"\n{counts.total()} orders, {rush.kills} fronts and workers killed, {again} requests sent"
        f" again: {counts['cancelled']} cancelled, {returned} of them when they were allocated,"
        f" {counts['allocated']} allocated, {counts['rejected']} rejected; every answer true\n"
    )


@pytest.mark.prove
@pytest.mark.timeout(1200)
def test_a_cancel_answered_is_a_cancel_whoever_is_killed(
    rasher: Start, database: list[str], tmp_path: Path
) -> None:
    sys.stdout.write(go(rasher, database, tmp_path, Rush(10_000, kills=40, recalls=3)))
