"""How far single orders are, for whoever listens to `GET /events?order_id=`.

One look for all of them, every LOOK_S: positions that changed in between are told as one. An order
that waits is found by its sequence without a search. The database is asked about all of them with
one question, one at a time, when something was committed since the last one (the ring's counter of
commits says so), and at least every FALLBACK_S, for a worker may be killed before it counts. Who
waits for an answer (outcomes.py) is woken by each commit; a stream may last for an hour, so here
nothing happens more often than four times a second, however many commit.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ingest.answers import Refused
from ingest.database import Database
from ingest.flight import Flight, identity
from ingest.orders import in_flight, unknown, versioned
from ingest.sse import Event, Listener, Rounds
from processors.known import Known
from processors.orders import OrderView, find_order, view_orders
from processors.schema import format_uuid
from processors.store import Store
from ringbuf import Identity, Ring

LOOK_S = 0.25
FALLBACK_S = 1.0

logger = logging.getLogger(__name__)


class Watched:
    """An order and who listens for it."""

    def __init__(self) -> None:
        self.listeners: list[Listener] = []
        self.content: dict[str, Any] = {}
        self.sequence = -1  # while it waits; else less than that of any that does
        self.identity: Identity | None = None  # as it was seen in the ring or in a hand
        self.gone = False  # and is there no more
        self.done = False

    def tell(self, event: Event) -> None:
        """Everybody who does not know it."""
        self.done = event.last
        for listener in self.listeners:
            listener.tell(event)

    def end(self) -> None:
        """There is nothing to tell any more."""
        self.done = True
        for listener in self.listeners:
            listener.end()


class Progress:
    """The orders that somebody listens for."""

    def __init__(self, ring: Ring, database: Database) -> None:
        self._ring = ring
        self._database = database
        self._orders: dict[bytes, Watched] = {}
        self._rounds = Rounds(self._look, LOOK_S)
        self._flight = Flight(database)
        self._known = Known()
        self._asking: asyncio.Task[None] | None = None
        self._asked_at = 0.0
        self._commits = 0  # when it was asked

    async def first(self, key: bytes) -> Event:
        """What is known now; Refused with 404 or 503."""
        found = self._ring.find(key)
        if found is not None and not await self._flight.settled([found.item]):
            return step(in_flight(key, found))
        view = await self._database.ask(find_order, key)
        if view is None:
            raise Refused(unknown(format_uuid(key)))
        return outcome(view)

    @contextmanager
    def listening(self, key: bytes, listener: Listener) -> Iterator[None]:
        """Meanwhile it is told of every change."""
        watched = self._orders.get(key)
        if watched is None or watched.done:  # done and here again: it was replayed
            watched = self._orders[key] = Watched()
        watched.listeners.append(listener)
        try:
            with self._rounds.listening(listener):
                yield
        finally:
            watched.listeners.remove(listener)
            if not watched.listeners and self._orders.get(key) is watched:
                del self._orders[key]

    async def _look(self) -> None:
        for key, watched in list(self._orders.items()):
            if not watched.done:
                watched.gone = not self._is_in_flight(key, watched)
            await asyncio.sleep(0)  # a search through a large ring takes a millisecond
        left = {key: watched for key, watched in self._orders.items() if not watched.done}
        gone = [key for key, watched in left.items() if watched.gone]
        if self._asking is None and left and (gone or self._may_be_committed()):
            flying = [one.identity for one in left.values() if one.identity and not one.gone]
            # Apart, for positions go on changing meanwhile.
            self._asking = asyncio.create_task(self._ask(flying, gone))

    def _may_be_committed(self) -> bool:
        since_s = asyncio.get_running_loop().time() - self._asked_at
        return self._ring.commits != self._commits or since_s >= FALLBACK_S

    def _is_in_flight(self, key: bytes, watched: Watched) -> bool:
        head = self._ring.head
        if watched.sequence >= head:
            watched.content["position"] = watched.sequence - head
        else:
            found = self._ring.find(key)
            if found is None:
                return False
            watched.content, watched.identity = in_flight(key, found), identity(found.item)
            watched.sequence = found.item.sequence if found.place == "ring" else -1
        watched.tell(step(watched.content))
        return True

    async def _ask(self, flying: Sequence[Identity], gone: Sequence[bytes]) -> None:
        self._asked_at, self._commits = asyncio.get_running_loop().time(), self._ring.commits
        try:
            done = await self._database.ask(find_done, self._known, flying, gone)
        except Refused:
            return  # those who listen go on, and a later look asks again
        except Exception:
            logger.exception("a mistake of ours in /events")
            done = dict.fromkeys(gone)
        finally:
            self._asking = None
        for key, view in done.items():
            watched = self._orders.get(key)
            if watched is None:
                continue
            if view is None:  # forgotten: who comes again is told so by 404
                watched.end()
            else:
                watched.tell(outcome(view))


def step(content: dict[str, Any]) -> Event:
    """Of an order on its way, as `GET /orders/{id}` has it."""
    return _event("progress", content, last=False)


def outcome(view: OrderView) -> Event:
    """Of an order that has its outcome."""
    return _event("outcome", view.to_json_dict(), last=True)


def _event(name: str, content: dict[str, Any], *, last: bool) -> Event:
    answer = versioned(content)
    return Event(name, answer.body, answer.headers[-1][1].decode().strip('"'), last)


def find_done(
    store: Store, known: Known, flying: Sequence[Identity], gone: Sequence[bytes]
) -> dict[bytes, OrderView | None]:
    """Those in flight that have their outcome nevertheless (cancelled, or not released yet), and
    all that are gone. Not more than 256 together."""
    with store.reading() as connection:
        settled = known.of(connection, flying) if flying else ()
        keys = [*(one.key for one in settled), *gone]
        views = view_orders(connection, keys) if keys else {}
    return {key: views.get(key) for key in keys}
