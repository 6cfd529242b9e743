"""The whole program and clients that mean no good: it stays up, as large as it was, for others."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import psutil
import pytest
import uvloop

from ingest.protocol import HEAD_S_MAX
from ingest.unsent import SEND_S_MAX
from tests.ingest.malformed import CASES, NEXT, in_pieces, malformed
from tests.ingest.visitors import visit_all
from tests.program import ROOT, Client, Rasher, Start, clean_environ, verb

# A refusal, its linger, and a busy machine.
PATIENCE_S = 30.0
SUITE_REQUESTS = 1_000
PROVE_REQUESTS = int(os.environ.get("PROVE_MALFORMED", "1_000_000"))
# First the allocator and the caches find their size.
WARM_UP = 20_000
STEP = 10_000
GROWTH_BYTES_PER_100K = 2**20
SLOW_CLIENTS = int(os.environ.get("PROVE_SLOW_CLIENTS", "1_000"))
SLOW_S = float(os.environ.get("PROVE_SLOW_S", "60"))
ORDINARY = 4
PAUSE_S = 0.01


def texts(seed: int) -> Iterator[list[bytes]]:
    chance = Random(seed)
    for sent in malformed(seed):
        yield in_pieces(chance, sent + NEXT)


def storm(run: Rasher, reads: Iterator[list[bytes]], count: int) -> Counter[int]:
    """How often each status came first; 0: the connection ended without one, -1: it never ended."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        heard = runner.run(visit_all(run.port, itertools.islice(reads, count), PATIENCE_S))
    assert len(heard) == count
    return Counter(-1 if one is None else int(one[9:12] or 0) for one in heard)


def check(counts: Counter[int]) -> None:
    assert not counts[-1], "a connection outlasted every deadline"
    assert not [status for status in counts if status >= 500 and status != 503], counts


def test_a_running_front_survives_malformed_requests(rasher: Start) -> None:
    run = rasher("--durability", "memory", "--workers", "1").ready()
    front = run.child("front")
    descriptors = open_sockets(front)
    check(storm(run, ([case.sent + NEXT] for case in CASES), len(CASES)))
    counts = storm(run, texts(3), SUITE_REQUESTS)
    check(counts)
    assert counts[400] > SUITE_REQUESTS / 2
    assert run.child("front") == front
    run.until(lambda: open_sockets(front) <= descriptors, "descriptors are back")


@pytest.mark.prove
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("lane", ["on", "off"])
def test_a_running_front_survives_a_storm_of_malformed_requests(rasher: Start, lane: str) -> None:
    run = rasher("--durability", "memory", "--workers", "1", "--lane", lane).ready()
    front, reads = run.child("front"), texts(5)
    descriptors = open_sockets(front)
    counts = storm(run, reads, WARM_UP)
    sizes = [front.memory_info().rss]
    for _ in range(PROVE_REQUESTS // 2 // STEP):  # the other half is the other lane's
        counts += storm(run, reads, STEP)
        sizes.append(front.memory_info().rss)
    check(counts)
    slope = float(np.polyfit(np.arange(len(sizes)), sizes, 1)[0]) * (100_000 / STEP)
    run.until(lambda: open_sockets(front) <= descriptors, "descriptors are back")
    print(f"\nlane {lane}: {counts.total()} malformed requests: {dict(sorted(counts.items()))};"
          f" {slope / 1024:.0f} KiB resident for 100,000; each {STEP}:"
          f" {[size >> 10 for size in sizes]} KiB")  # fmt: skip
    assert run.child("front") == front
    assert slope < GROWTH_BYTES_PER_100K
    audit = verb(run, "audit")
    assert audit.returncode == 0, audit.stdout


class Ordinary:
    """Clients that order one after the other, on connections that stay."""

    def __init__(self, run: Rasher) -> None:
        self._run = run
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._order) for _ in range(ORDINARY)]
        self.latency_s: list[float] = []
        self.failed: Counter[str] = Counter()

    def __enter__(self) -> Ordinary:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _order(self) -> None:
        client = Client(self._run)
        body = {"customer": "ordinary", "lines": [{"sku": "BELLY", "quantity": "1"}]}
        while not self._over.wait(PAUSE_S):
            began_s = time.perf_counter()
            try:
                status, _ = client.call("POST", "/orders", body)
            except OSError as error:
                self.failed[repr(error)] += 1
                client.connection.close()
                continue
            self.latency_s.append(time.perf_counter() - began_s)
            if status != 202:
                self.failed[str(status)] += 1
        client.connection.close()

    @property
    def p99_s(self) -> float:
        return float(np.percentile(self.latency_s, 99))


def calm(run: Rasher, seconds: float) -> Ordinary:
    with Ordinary(run) as clients:
        threading.Event().wait(seconds)
    return clients


def beside(run: Rasher, kind: str) -> tuple[Ordinary, dict[str, float]]:
    words = [str(run.port), kind, str(SLOW_CLIENTS), str(SLOW_S)]
    with Ordinary(run) as clients:
        crowd = subprocess.run(
            [sys.executable, "-m", "tests.ingest.visitors", *words],
            cwd=ROOT, env=clean_environ(), stdout=subprocess.PIPE, check=True, text=True,
            timeout=SLOW_S + 120,
        )  # fmt: skip
    found: dict[str, float] = json.loads(crowd.stdout)
    return clients, found


@pytest.mark.prove
@pytest.mark.alone
@pytest.mark.timeout(900)
@pytest.mark.parametrize("lane", ["on", "off"])
@pytest.mark.parametrize(
    ("kind", "deadline_s"), [("head", HEAD_S_MAX), ("body", 30.0), ("reader", SEND_S_MAX)]
)
def test_slow_clients_end_at_their_deadline_and_others_notice_nothing(
    rasher: Start, lane: str, kind: str, deadline_s: float
) -> None:
    run = rasher("--durability", "memory", "--workers", "1", "--lane", lane).ready()
    front = run.child("front")
    calm(run, 2)
    descriptors = open_sockets(front)
    before = calm(run, SLOW_S / 4)
    during, crowd = beside(run, kind)
    run.until(lambda: open_sockets(front) <= descriptors, "descriptors are back")
    print(f"\n{kind}, lane {lane}: {SLOW_CLIENTS} slow clients for {SLOW_S:g} s {crowd};"
          f" {len(during.latency_s)} ordinary orders, {during.failed.total()} failed;"
          f" p99 {before.p99_s * 1e3:.2f} ms alone, {during.p99_s * 1e3:.2f} ms beside them;"
          f" {descriptors} sockets before and after")  # fmt: skip
    assert not during.failed
    assert crowd["ended"] >= SLOW_CLIENTS * (SLOW_S // (2 * deadline_s) or 1)
    assert crowd["longest_s"] < 2 * deadline_s
    assert during.p99_s <= 2 * before.p99_s


def open_sockets(front: psutil.Process) -> int:
    """Its descriptors but for files, which it opens when they are first needed."""
    links = Path(f"/proc/{front.pid}/fd").iterdir()
    return sum(str(link.readlink()).startswith("socket:") for link in links)
