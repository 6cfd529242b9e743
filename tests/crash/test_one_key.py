"""Two clients with one idempotency key at the same instant, over two fronts, and kills: one order
for each key."""

from __future__ import annotations

import http.client
import json
import random
import signal
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.program import JSON, PATIENCE_S, Rasher, Start, verb

CONNECTIONS = 4
ASK_AGAIN_S = 0.005


@dataclass
class Client(threading.Thread):
    """Posts under each key when the other does, on one of its connections, until it is answered."""

    run_: Rasher
    quantity: str
    keys: list[str]
    same: Any  # whether both clients order the same under that key
    together: threading.Barrier
    statuses: list[int] = field(default_factory=list)
    ids: list[str | None] = field(default_factory=list)
    unanswered: int = 0

    def __post_init__(self) -> None:
        super().__init__()
        self.chance = random.Random(self.quantity)
        self.ledger: list[str] = []

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        connections = [
            http.client.HTTPConnection("127.0.0.1", self.run_.port, timeout=PATIENCE_S)
            for _ in range(CONNECTIONS)
        ]
        try:
            for key in self.keys:
                quantity = "1" if self.same(key) else self.quantity
                self.together.wait(PATIENCE_S)
                status, content = self._post(self.chance.choice(connections), key, quantity)
                self.statuses.append(status)
                self.ids.append(content.get("order_id"))
        except BaseException:
            self.together.abort()
            raise
        finally:
            for connection in connections:
                connection.close()

    def _post(self, connection: Any, key: str, quantity: str) -> tuple[int, Any]:
        body = {"customer": "Funky Foods", "lines": [{"sku": "BELLY", "quantity": quantity}]}
        for _ in range(int(PATIENCE_S / ASK_AGAIN_S)):
            try:
                headers = {**JSON, "Idempotency-Key": key}
                connection.request("POST", "/orders", json.dumps(body), headers)
                answer = connection.getresponse()
                return answer.status, json.loads(answer.read())
            except (OSError, http.client.HTTPException):
                self.unanswered += 1
                connection.close()
                threading.Event().wait(ASK_AGAIN_S)
        raise AssertionError(f"no answer to {key}")


def differs(key: str) -> bool:
    return int(key) % 2 == 1


def race(rasher: Start, keys: int, kills: int) -> None:
    run = rasher("--fronts", "2", "--workers", "1", "--capacity", "32").ready()
    names = [str(number) for number in range(keys)]
    together = threading.Barrier(2)
    clients = [
        Client(run, quantity, names, lambda key: not differs(key), together)
        for quantity in ("2", "3")
    ]
    for client in clients:
        client.start()
    for number in range(kills):
        mark = keys * (number + 1) // (kills + 1)
        run.until(lambda mark=mark: len(clients[0].ids) >= mark, f"{mark} keys")  # type: ignore[misc]
        role = ("front", "worker")[number % 3 == 2]
        victims = run.children(role)
        victims[random.Random(number).choice(sorted(victims))].kill()
    for client in clients:
        client.join()
    run.until(lambda: not run.left(), "all settled")
    audit = verb(run, "audit")
    assert audit.returncode == 0, audit.stdout
    assert run.end(signal.SIGTERM) == 0
    check(run, names, clients)


def check(run: Rasher, names: list[str], clients: list[Client]) -> None:
    first, second = clients
    rows = dict(run.rows("SELECT lower(hex(id)), lines FROM orders"))
    assert len(rows) == len(names) == len(first.ids) == len(second.ids)
    seen: Counter[str] = Counter()
    for place, key in enumerate(names):
        told = (first.statuses[place], second.statuses[place])
        ids = {one for one in (first.ids[place], second.ids[place]) if one is not None}
        (order_id,) = ids
        ((_sku, thousandths),) = json.loads(rows.pop(order_id.replace("-", "")))
        if differs(key):
            assert sorted(told) == [202, 422], (key, told)
            winner = first if told[0] == 202 else second
            assert thousandths == int(winner.quantity) * 1000, key
            seen["first" if winner is first else "second"] += 1
        else:
            assert told == (202, 202), (key, told)
    assert not rows
    sys.stdout.write(
        f"\n{len(names)} keys, two clients each at once: one order each; of two bodies the first"
        f" client's {seen['first']} times, the second's {seen['second']};"
        f" {first.unanswered + second.unanswered} requests without an answer sent again\n"
    )


def test_two_clients_with_one_key_at_the_same_instant_have_one_order(rasher: Start) -> None:
    race(rasher, 200, kills=3)


@pytest.mark.prove
@pytest.mark.timeout(600)
def test_ten_thousand_keys_of_two_clients_each_are_one_order_each(rasher: Start) -> None:
    race(rasher, 10_000, kills=60)
