"""`GET /metrics`: what all processes counted in their pages of the ring, added up when asked.

No process collects anything for it, and any front gives the same answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from ingest.answers import Answer, Refused
from ingest.database import Database
from ingest.exchange import Receive, Scope
from processors.dead_letters import count_dead_letters
from processors.delivery_list import backlog
from processors.tally import (
    ATTEMPTS,
    BUCKETS,
    CAUSES,
    HISTOGRAM,
    OF_ATTEMPTS,
    OUTCOMES,
    OWNER,
    REFUSALS,
    RELAY,
    WORD,
    limit,
    sums,
)
from ringbuf import Ring

# Bounds that are told, two for each power of two, of microseconds and of orders: what is finer is
# in the pages for whoever needs it.
MICROSECONDS = [i for i in range(BUCKETS) if i & 1 and 50 <= limit(i) <= 70_000_000]
ORDERS = [i for i in range(BUCKETS) if i & 1 and limit(i) <= 1200]

# A scrape must not wait for a database that is away.
DATABASE_S_MAX = 1.0

Process = tuple[str, int]


class Metrics:
    """The endpoint. `told`: the names of those that a relay tells of outcomes."""

    def __init__(self, ring: Ring, database: Database, told: Sequence[str] = ()) -> None:
        self._database = database
        self._told = told
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(Pages(ring, relay=bool(told)))

    async def __call__(self, _scope: Scope, _receive: Receive) -> Answer:
        headers = ((b"content-type", CONTENT_TYPE_LATEST.encode()),)
        text = generate_latest(self._registry) + generate_latest(await self._of_the_database())
        return Answer(200, headers, text)

    async def _of_the_database(self) -> CollectorRegistry:
        """Left out while it does not answer in time: no number is better than an old one."""
        registry = CollectorRegistry(auto_describe=False)
        with suppress(Refused, TimeoutError):
            async with asyncio.timeout(DATABASE_S_MAX):
                count = await self._database.ask(count_dead_letters)
                untold = await self._database.ask(backlog, self._told)
            for name, text, value in (
                ("rasher_dead_letters", "Orders that died.", count),
                ("rasher_outbox_pending", "Events still to be told to endpoints.", untold.events),
                ("rasher_outbox_oldest_seconds", "Age of the oldest of them.", untold.oldest_s),
            ):
                Gauge(name, text, registry=registry).set(value)
        return registry


class Pages(Collector):
    """All there is to tell of a ring. `relay`: there should be one."""

    def __init__(self, ring: Ring, *, relay: bool = False) -> None:
        self._ring = ring
        self._relay = relay

    def collect(self) -> Iterator[Metric]:
        """Reads every page once."""
        pages = self._ring.pages()
        of_workers, of_fronts = sums(pages[: self._ring.readers]), sums(pages[self._ring.readers :])
        total = [a + b for a, b in zip(of_workers, of_fronts, strict=True)]
        yield CounterMetricFamily(
            "rasher_orders_accepted", "Orders put into the ring.", total[WORD["accepted"]]
        )
        yield self._by("rasher_orders_refused", "Requests refused.", "reason", REFUSALS, total)
        yield self._by(
            "rasher_orders_completed", "Orders with an outcome.", "outcome", OUTCOMES, total
        )
        yield CounterMetricFamily(
            "rasher_orders_redelivered",
            "Orders taken that had their outcome already: taken before, or cancelled.",
            total[WORD["redelivered"]],
        )
        yield self._by(
            "rasher_webhook_attempts", "Attempts to tell an endpoint.", "outcome", ATTEMPTS, total
        )
        yield from self._of_the_ring()
        yield self._histogram(
            "rasher_accept_seconds", "From a request read whole to its order in the ring, synced.",
            total, "accept_us",
        )  # fmt: skip
        yield self._histogram(
            "rasher_journal_sync_seconds", "Of a group of the journal.", of_fronts, "sync_us"
        )
        yield self._histogram(
            "rasher_queue_seconds", "From the ring to a worker's hand.", of_workers, "queue_us"
        )
        yield self._histogram(
            "rasher_commit_seconds", "Of a batch: begin to commit and release.", total, "commit_us"
        )
        yield self._histogram("rasher_commit_orders", "Orders of a batch.", total, "commit_orders")
        yield self._living(pages)
        yield self._restarts(of_workers, of_fronts)

    @staticmethod
    def _by(name: str, text: str, label: str, words: Iterable[str], total: list[int]) -> Metric:
        family = CounterMetricFamily(name, text, labels=[label])
        for word in words:
            family.add_metric([word.removeprefix(OF_ATTEMPTS)], total[WORD[word]])
        return family

    def _of_the_ring(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("rasher_ring_depth", "Orders that wait.", self._ring.depth)
        yield GaugeMetricFamily("rasher_ring_capacity", "Slots.", self._ring.capacity)
        yield GaugeMetricFamily(
            "rasher_ring_oldest_seconds", "Age of the oldest order that waits; 0: none does.",
            oldest_s(self._ring),
        )  # fmt: skip

    @staticmethod
    def _histogram(name: str, text: str, total: list[int], key: str) -> Metric:
        scale, told = (1e6, MICROSECONDS) if key.endswith("_us") else (1, ORDERS)
        at = HISTOGRAM[key]
        counts = total[at : at + BUCKETS]
        # A bucket holds whole numbers below its limit; Prometheus' bounds are inclusive.
        buckets = [(f"{(limit(i) - 1) / scale:g}", float(sum(counts[: i + 1]))) for i in told]
        buckets.append(("+Inf", float(sum(counts))))
        return HistogramMetricFamily(name, text, buckets, total[at + BUCKETS] / scale)

    def _living(self, pages: list[memoryview]) -> Metric:
        up = GaugeMetricFamily("rasher_process_up", "1: it lives.", labels=["role", "index"])
        living = {(one.role, one.index) for one in self._ring.participants() if one.alive()}
        found: dict[Process, bool] = {("relay", 0): False} if self._relay else {}
        for place, process in self._owners(pages):
            of_reader = place < self._ring.readers
            entry = ("reader", place) if of_reader else ("writer", place - self._ring.readers)
            if entry in living or process[0] != "relay":  # of one that nobody wants a page is left
                found[process] = found.get(process, False) or entry in living
        for (role, index), lives in sorted(found.items()):
            up.add_metric([role, str(index)], lives)
        return up

    @staticmethod
    def _restarts(of_workers: list[int], of_fronts: list[int]) -> Metric:
        again = CounterMetricFamily(
            "rasher_process_restarts", "Processes that followed another, by its end.",
            labels=["role", "cause"],
        )  # fmt: skip
        for role, total, prefix in (
            ("front", of_fronts, "restarted"),
            ("worker", of_workers, "restarted"),
            ("relay", of_fronts, "relay"),
        ):
            for cause in CAUSES:
                again.add_metric([role, cause], total[WORD[f"{prefix}_{cause}"]])
        return again

    def _owners(self, pages: list[memoryview]) -> Iterator[tuple[int, Process]]:
        """The page's place, and whose it is, or was last."""
        for place, page in enumerate(pages):
            owner = page[OWNER]
            if owner == RELAY:
                yield place, ("relay", 0)
            elif owner:
                yield place, ("worker" if place < self._ring.readers else "front", owner - 1)


def oldest_s(ring: Ring) -> float:
    """Seconds since the order was accepted that is taken next; 0.0 when none waits."""
    head = ring.head
    if head == ring.tail:
        return 0.0
    oldest = ring.slots[head % ring.capacity]
    accepted_ns, stamp = int(oldest["accepted_ns"]), int(oldest["stamp"])
    return max(0.0, (time.time_ns() - accepted_ns) / 1e9) if stamp == head + 1 else 0.0
