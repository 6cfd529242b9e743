"""Waiting for outcomes: woken by commits, and one question to the database for all who wait.

Workers count their commits in the ring, and a thread sleeps until that number changes, but only
while somebody waits: without waiters nothing here costs anything.

    commit ──► counter ──► thread ──► one question, never two at once ──► those with an outcome

A worker that died between a commit and its count is why the question is asked every LOOK_S in any
case. Who waits is bounded by the front's connections, how long by each one's patience.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Sequence

from ingest.answers import Refused
from ingest.database import Database
from ingest.ending import Ending
from processors.known import Known
from processors.orders import OrderView, view_orders
from processors.store import Store
from ringbuf import Identity, Ring, RingError

LOOK_S = 0.25
# Of one question; the others are asked about next.
ASKED_MAX = 256

Waiter = asyncio.Future["OrderView | None"]


class Outcomes:
    """Of one front, on its event loop."""

    def __init__(self, ring: Ring, database: Database, ending: Ending) -> None:
        self._ring = ring
        self._database = database
        self._ending = ending
        self._known = Known()
        self._waiting: defaultdict[Identity, list[Waiter]] = defaultdict(list)
        self._asking: asyncio.Task[None] | None = None
        self._stale = False  # commits came while it was asked
        self._thread: threading.Thread | None = None
        self._wanted = threading.Event()
        self._closed = False

    @property
    def commits(self) -> int:
        """The ring's count of commits; taken before an order is looked for or put."""
        return self._ring.commits

    async def of(self, identity: Identity, seen: int, patience_s: float) -> OrderView | None:
        """The order once it has its outcome; None when it has none in that time, or before the
        front ends. `seen`: the count of commits when it was known to have none."""
        loop = asyncio.get_running_loop()
        waiter: Waiter = loop.create_future()
        self._waiting[identity].append(waiter)
        try:
            self._watch(loop)
            if self._ring.commits != seen:
                self._look()
            async with self._ending.before(patience_s):
                return await waiter
        except TimeoutError:
            return None
        finally:
            self._leave(identity, waiter)

    async def close(self) -> None:
        """Returns when the thread has ended; nobody waits any more."""
        self._closed = True
        self._wanted.set()
        if self._asking is not None:
            await asyncio.wait({self._asking})
        if self._thread is not None:
            self._ring.bump_commits()  # as a commit wakes it; others look once more, too
            await asyncio.to_thread(self._thread.join)

    def _leave(self, identity: Identity, waiter: Waiter) -> None:
        left = self._waiting[identity]
        left.remove(waiter)
        if not left:
            del self._waiting[identity]

    # ---- the thread ------------------------------------------------------------------------------

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        self._wanted.set()
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._sleep, args=(loop,), name="rasher-outcomes", daemon=True
            )
            self._thread.start()

    def _sleep(self, loop: asyncio.AbstractEventLoop) -> None:
        seen = self._ring.commits
        while True:
            self._wanted.wait()
            if self._closed:
                return
            try:
                seen = self._ring.wait_commits(seen, LOOK_S)
                loop.call_soon_threadsafe(self._awake)
            except (RingError, RuntimeError):  # the ring or the loop is closed
                return

    def _awake(self) -> None:
        # Decided here, where waiters come and go, so that none comes unnoticed.
        if self._waiting:
            self._look()
        elif not self._closed:  # then it was set to end the thread
            self._wanted.clear()

    # ---- the question ----------------------------------------------------------------------------

    def _look(self) -> None:
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask_all())
        else:
            self._stale = True

    async def _ask_all(self) -> None:
        try:
            while True:
                begun_s = time.monotonic()
                self._stale = False
                identities = list(self._waiting)
                for begin in range(0, len(identities), ASKED_MAX):
                    await self._ask(identities[begin : begin + ASKED_MAX])
                if not self._stale:
                    return
                # However many commit and wait, half of the time is left for other questions.
                await asyncio.sleep(time.monotonic() - begun_s)
        except Refused:
            pass  # the database is away; the next look is due in LOOK_S
        finally:
            self._asking = None

    async def _ask(self, some: Sequence[Identity]) -> None:
        for identity, view in (await self._database.ask(self._views, some)).items():
            for waiter in self._waiting.get(identity, ()):
                _settle(waiter, view)

    def _views(self, store: Store, some: Sequence[Identity]) -> dict[Identity, OrderView]:
        with store.reading() as connection:
            settled = self._known.of(connection, some)
            views = view_orders(connection, [one.key for one in settled]) if settled else {}
        return {one: views[one.key] for one in settled if one.key in views}


def _settle(waiter: Waiter, view: OrderView | None) -> None:
    if not waiter.done():
        waiter.set_result(view)
