"""The counters of all processes, each second, for whoever listens to `GET /events`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from ingest.metrics import oldest_s
from ingest.sse import Event, Listener, Rounds
from processors.instants import now_us
from processors.schema import format_instant
from processors.tally import OUTCOMES, OWNER, PARKED, REFUSALS, RELAY, WORD
from ringbuf import Ring

EVERY_S = 1.0


class Counters:
    """They are added up once a second however many listen, and never when nobody does."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._rounds = Rounds(self._tell_all, EVERY_S)
        self._newest: Event | None = None

    @contextmanager
    def listening(self, listener: Listener) -> Iterator[None]:
        """Meanwhile it is told; of the newest at once."""
        if self._rounds.running and self._newest is not None:
            listener.tell(self._newest)
        with self._rounds.listening(listener):
            yield

    async def _tell_all(self) -> None:
        newest = self._newest = Event("counters", msgspec.json.encode(figures(self._ring)))
        for listener in self._rounds.listeners:
            listener.tell(newest)


def figures(ring: Ring) -> dict[str, Any]:
    """What `/metrics` tells, but times and batches; `parked`: orders that wait for room."""
    pages = ring.pages()
    living = [one for one in ring.participants() if one.alive()]
    workers = [one for one in living if one.role == "reader"]
    writers = [pages[ring.readers + one.index] for one in living if one.role == "writer"]
    fronts = [page for page in writers if page[OWNER] != RELAY]

    def total(name: str) -> int:
        word = WORD[name]
        return sum(page[word] for page in pages)

    return {
        "at": format_instant(now_us()),
        "accepted": total("accepted"),
        "refused": {reason: total(reason) for reason in REFUSALS},
        "completed": {outcome: total(outcome) for outcome in OUTCOMES},
        "redelivered": total("redelivered"),
        "depth": ring.depth,
        "capacity": ring.capacity,
        "oldest_s": round(oldest_s(ring), 3),
        # A front that was killed left its number behind.
        "parked": sum(page[PARKED] for page in fronts),
        "workers_up": len(workers),
        "fronts_up": len(fronts),
    }
