"""`GET /events`: server-sent events, the counters of the whole service or one order's progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ingest.answers import Answer, Refused, problem, unavailable
from ingest.counters import Counters
from ingest.database import Database
from ingest.ending import Ending
from ingest.exchange import HungUp, Receive, Scope, Send, deliver, header
from ingest.hangup import CONNECTION, cut_off, unless_hung_up
from ingest.problems import BAD_QUERY, TOO_MANY_LISTENERS
from ingest.progress import Progress
from ingest.sse import Listener, Stalled, stream
from ingest.stock import read_query
from processors.schema import parse_uuid
from ringbuf import Ring

# Streams of one front at a time; each holds a connection.
LISTENERS_MAX = 256
FULL_RETRY_AFTER_S = 5
LAST_EVENT_ID = b"last-event-id"


class Events:
    """The ASGI application."""

    def __init__(self, ring: Ring, database: Database, ending: Ending) -> None:
        self._ending = ending
        self._counters = Counters(ring)
        self._progress = Progress(ring, database)
        self._listening = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            order_id = read_order_id(scope)
            with self._place():
                await unless_hung_up(scope, self._serve(scope, receive, send, order_id))
        except Refused as refused:
            await deliver(refused.answer, receive, send)
        except HungUp:
            return
        except Stalled:
            connection = scope.get("extensions", {}).get(CONNECTION)
            # Closed already, nobody would tell when it has ended; another server cuts off itself.
            if connection is not None and not connection["transport"].is_closing():
                await cut_off(scope)

    async def _serve(
        self, scope: Scope, receive: Receive, send: Send, order_id: bytes | None
    ) -> None:
        if order_id is None:
            listener = Listener()
            with self._counters.listening(listener):
                await stream(scope, send, listener, self._ending)
            return
        known = (header(scope, LAST_EVENT_ID) or b"").decode("latin-1")
        first = await self._progress.first(order_id)
        if first.last and first.id == known:  # a browser's EventSource comes again until it is told
            await deliver(Answer(204, (), b""), receive, send)
            return
        listener = Listener(known)
        listener.tell(first)
        with self._progress.listening(order_id, listener):
            await stream(scope, send, listener, self._ending)

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._listening >= LISTENERS_MAX:
            detail = f"{LISTENERS_MAX} listen already, which is all that one front sends events to"
            raise Refused(unavailable(TOO_MANY_LISTENERS, detail, FULL_RETRY_AFTER_S))
        self._listening += 1
        try:
            yield
        finally:
            self._listening -= 1


def read_order_id(scope: Scope) -> bytes | None:
    """Of the query; Refused with 422 for what is none."""
    text = read_query(scope, "order_id").get("order_id")
    if text is None:
        return None
    order_id = parse_uuid(text)
    if order_id is None:
        raise Refused(problem(BAD_QUERY, f"order_id must be a UUID, is {text[:100]}"))
    return order_id
