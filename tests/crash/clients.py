"""Clients of a program that is being killed: they go on, and remember what they were told."""

from __future__ import annotations

import http.client
import json
import random
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.program import EXPIRY, JSON, PATIENCE_S, ROOT, clean_environ

NO_ANSWER = 0
ADJUST_EVERY_S = 0.02
ADJUST_POUNDS_MAX = 30
ASK_AGAIN_S = 0.005
# Below the ephemeral ports: while nobody listens there, no connection can be given that number.
PORTS = range(20_000, 32_000)


def steady_port(chance: random.Random) -> int:
    """A free port that one supervisor after the other can have."""
    while True:
        port = chance.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def call(port: int, path: str, body: object) -> int:
    """Posts on a connection of its own -> the status, NO_ANSWER where none came."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    with closing(connection):
        try:
            connection.request("POST", path, json.dumps(body), JSON)
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            return NO_ANSWER
        return answer.status


class Load:
    """`rasher load`: open loop, unique orders, 0 in the ledger for what got no answer."""

    def __init__(self, port: int, skus: list[str], rate: int, ledger: Path, seed: int) -> None:
        words = ["load", "--url", f"http://127.0.0.1:{port}", "--rate", str(rate), "--json"]
        words += ["--duration", "100000", "--connections", "64", "--ledger", str(ledger)]
        words += ["--skus", ",".join(skus), "--seed", str(seed)]
        self.rate = rate
        self._popen = subprocess.Popen(
            [sys.executable, "supervisor.py", *words],
            cwd=ROOT,
            env=clean_environ(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )

    def stop(self) -> dict[str, Any]:
        """-> its report. What is under way goes to the ledger as not answered."""
        self._popen.terminate()
        said = self._popen.communicate(timeout=PATIENCE_S)[0]
        report: dict[str, Any] = json.loads(said)
        return report

    def kill(self) -> None:
        self._popen.kill()
        self._popen.communicate()


class Prober:
    """Orders posted one after the other, each with a new id, until one is taken in."""

    def __init__(self, port: int, sku: str, ledger: Path) -> None:
        self._port, self._ledger = port, ledger
        self._lines = [{"sku": sku, "quantity": "1"}]

    def accepted(self) -> bool:
        order_id = str(uuid.uuid4())
        body = {"order_id": order_id, "customer": "prober", "lines": self._lines}
        status = call(self._port, "/orders", body)
        with self._ledger.open("a", encoding="ascii") as file:
            file.write(f"{order_id} {status}\n")
        return status == 202

    def until_accepted(self) -> float:
        """-> the moment at which an order was taken in (monotonic seconds)."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.accepted():
            assert time.monotonic() < deadline, "no order is taken in"
            threading.Event().wait(ASK_AGAIN_S)
        return time.monotonic()


class Adjuster(threading.Thread):
    """Corrects a random lot every 20 ms. Each correction has its own reason: which is there?"""

    def __init__(self, port: int, lots: list[str], seed: int) -> None:
        super().__init__()
        self._port, self._lots, self._chance = port, lots, random.Random(seed)
        self._over = threading.Event()
        self.statuses: dict[str, int] = {}
        self.deltas: dict[str, int] = {}

    def run(self) -> None:
        while not self._over.wait(ADJUST_EVERY_S):
            reason = f"count {len(self.statuses)}"
            delta = self._chance.choice((-1, 1)) * self._chance.randint(1, ADJUST_POUNDS_MAX * 1000)
            path = f"/lots/{self._chance.choice(self._lots)}/adjustments"
            body = {"delta": f"{delta / 1000:.3f}", "reason": reason}
            self.deltas[reason] = delta
            self.statuses[reason] = call(self._port, path, body)

    def stop(self) -> None:
        self._over.set()
        self.join()

    def check(self, found: list[tuple[str, int]]) -> Counter[str]:
        """`found`: reason and delta of all that is in the database. -> counts by what was told."""
        there = dict(found)
        assert len(there) == len(found), "a correction was made twice"
        assert all(self.deltas[reason] == delta for reason, delta in found)
        counts: Counter[str] = Counter()
        for reason, status in self.statuses.items():
            assert status in (201, 409, 503, NO_ANSWER), (reason, status)
            assert status != 201 or reason in there, f"{reason} was answered and is gone"
            assert status != 409 or reason not in there, f"{reason} was refused and is there"
            counts[f"{status} there" if reason in there else f"{status} not there"] += 1
        return counts


def lots_of(skus: list[str], lots_of_a_sku: int, pounds: int) -> list[dict[str, str]]:
    return [
        {
            "lot_id": f"{sku}-{number}",
            "sku": sku,
            "quantity": str(pounds),
            # Few days, so that lots tie and the lot id decides.
            "expires_at": EXPIRY.replace("-01-01", f"-01-{1 + number % 5:02}"),
        }
        for sku in skus
        for number in range(lots_of_a_sku)
    ]
