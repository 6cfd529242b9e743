"""How the relay comes to the database, and is not in the way of orders there.

On PostgreSQL in threads, as many at once as ask.

SQLite has one write lock, and the relay yields its core to everybody. Left to itself it would take
the lock, lose the core to those who wait for the lock, and hold up every order until it gets a core
again: hundreds of ms on a busy machine. So it writes in a thread that was there before the process
began to yield. That thread needs the interpreter's lock as well, which a yielding thread may hold
as it loses its core; so nothing else of this process runs meanwhile: no question is under way, and
the loop waits, WAIT_S_MAX for the write lock at most, and then until the commit is there.

While others commit it has the write lock for one part in SHARE of the time, no more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sqlalchemy.engine import Connection

from processors.store import Store
from ringbuf import Ring

SHARE = 40
PAUSE_S_MAX = 1.0
# Of the store that is given: nothing else of the process goes on meanwhile.
WAIT_S_MAX = 0.5

T = TypeVar("T")


class Access:
    """Threads for questions and transactions."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def ask(self, question: Callable[[], T]) -> T:
        """What `question` returns; it blocks. Raises StoreUnavailable."""
        return await asyncio.to_thread(question)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """As Store.commit."""
        return await asyncio.to_thread(lambda: self.store.commit(work))

    def pause_s(self) -> float:
        """How long nothing should be written after the last time."""
        return 0.0

    def close(self) -> None:
        """Ends what it began."""


class Urgent(Access):
    """For SQLite. Made before the process begins to yield. `ring`: counts the commits of others."""

    def __init__(self, store: Store, ring: Ring) -> None:
        super().__init__(store)
        self._ring = ring
        self._turn = asyncio.Lock()
        self._commits = ring.commits
        self._pause_s = 0.0
        self._thread = ThreadPoolExecutor(1, "record")
        self._thread.submit(int).result()  # now it is there

    async def ask(self, question: Callable[[], T]) -> T:
        async with self._turn:
            return await asyncio.to_thread(question)

    async def write(self, work: Callable[[Connection], T]) -> T:
        locked_s = 0.0

        def timed(connection: Connection) -> T:
            nonlocal locked_s
            locked_s = time.monotonic()
            return work(connection)

        async with self._turn:
            # The loop waits: that is the point.
            found = self._thread.submit(lambda: self.store.commit(timed)).result()
        self._note(time.monotonic() - locked_s)
        return found

    def _note(self, held_s: float) -> None:
        before, self._commits = self._commits, self._ring.commits
        alone = before == self._commits
        self._pause_s = 0.0 if alone else min(PAUSE_S_MAX, (SHARE - 1) * held_s)

    def pause_s(self) -> float:
        return self._pause_s

    def close(self) -> None:
        self._thread.shutdown()
