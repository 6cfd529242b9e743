"""`/livez` and `/readyz`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ingest.accept import Acceptor
from ingest.answers import Answer, json_answer, unavailable
from ingest.database import Database
from ingest.exchange import Receive, Scope
from ingest.problems import RING_FULL
from processors.tally import AWAY
from ringbuf import Ring


async def livez(_scope: Scope, _receive: Receive) -> Answer:
    """The process answers."""
    return json_answer(200, {"status": "alive"})


class Readyz:
    """Ready while a POST would be accepted; the body says what is degraded."""

    def __init__(
        self, ring: Ring, acceptor: Acceptor, database: Database, full_timeout_s: float
    ) -> None:
        self._ring = ring
        self._acceptor = acceptor
        self._database = database
        self._full_timeout_s = full_timeout_s

    async def __call__(self, scope: Scope, _receive: Receive) -> Answer:
        self._acceptor.meter.note()
        refusal = self._acceptor.refusal()
        if refusal is not None:
            return refusal
        full_s = full_for_s(self._ring)
        if full_s > self._full_timeout_s:
            detail = f"the ring has been full for {full_s:.1f} s (--full-timeout)"
            if not await self._has_database():
                detail += "; the database does not answer, or not in time (--database)"
            return unavailable(RING_FULL, detail, self._acceptor.meter.retry_after_s(1))
        content: dict[str, Any] = {"status": "ready", "degraded": await self._degraded(full_s)}
        if b"verbose" in scope["query_string"].replace(b"=", b"&").split(b"&"):
            content |= self._figures()
        return json_answer(200, content)

    async def _degraded(self, full_s: float) -> list[str]:
        parts = [] if await self._has_database() else ["database"]
        parts += ["journal"] if self._acceptor.trouble else []
        return [*parts, "ring"] if full_s else parts

    async def _has_database(self) -> bool:
        """For the workers, which write, and for this front, which reads."""
        living = [one.index for one in self._ring.participants() if one.role == "reader"]
        pages = self._ring.pages()
        if any(pages[index][AWAY] for index in living):
            return False
        return await self._database.reachable()

    def _figures(self) -> dict[str, Any]:
        rate = self._acceptor.meter.rate()
        return {
            "depth": self._ring.depth,
            "capacity": self._ring.capacity,
            "waiting": self._acceptor.parked,
            "drain_rate": None if rate is None else round(rate, 3),
        }


def full_for_s(ring: Ring, clock_ns: Callable[[], int] = time.time_ns) -> float:
    """Seconds since a full ring last had room, 0.0 when it has.

    A full ring had room until its newest slot was written, whoever wrote it. Full of orders that
    were moved from another ring it says too much: they kept their time. The first take ends that.
    """
    if ring.depth < ring.capacity:
        return 0.0
    newest = ring.slots[(ring.tail - 1) % ring.capacity]
    return max(1e-9, (clock_ns() - int(newest["accepted_ns"])) / 1e9)
