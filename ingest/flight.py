"""Orders in the ring and in hands, as the database knows them.

What lies there has no outcome, but for two: it was cancelled and no worker has come to it yet, or
it is committed and not released yet. The database tells; while it is away nothing is held back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from ingest.answers import Refused
from ingest.database import Database
from processors.known import Known
from processors.store import Store
from ringbuf import Identity, Item

# How long to wait for a database that may be away, and how long to do without it then.
ASKED_S_MAX = 1.0
AWAY_S = 1.0

Waiting = tuple[set[Identity], "asyncio.Future[set[Identity]]"]


class Flight:
    """Asks one database, one question at a time: who comes meanwhile is in the next one."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known = Known()
        self._waiting: list[Waiting] = []
        self._asking: asyncio.Task[None] | None = None
        self._away_until = 0.0

    async def settled(self, items: Sequence[Item]) -> set[Identity]:
        """Those of them that have an outcome, as far as can be told now."""
        if not items or time.monotonic() < self._away_until:
            return set()
        future: asyncio.Future[set[Identity]] = asyncio.get_running_loop().create_future()
        self._waiting.append(({identity(item) for item in items}, future))
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask_all())
        try:
            async with asyncio.timeout(ASKED_S_MAX):
                return await future
        except (Refused, TimeoutError):
            self._away_until = time.monotonic() + AWAY_S
            return set()

    async def _ask_all(self) -> None:
        while self._waiting:
            some, self._waiting = self._waiting, []
            await self._answer([one for one in some if not one[1].done()])
        self._asking = None

    async def _answer(self, some: Sequence[Waiting]) -> None:
        found, failed = set[Identity](), None
        try:
            wanted = set[Identity]().union(*(identities for identities, _ in some))
            found = await self._database.ask(self._ask, list(wanted))
        except Exception as error:
            failed = error  # each waits in a request of its own, and has to be told
        for identities, future in some:
            if future.done():
                continue
            if failed is not None:
                future.set_exception(failed)
            else:
                future.set_result(identities & found)

    def _ask(self, store: Store, identities: Sequence[Identity]) -> set[Identity]:
        with store.reading() as connection:
            return self._known.of(connection, identities)


def identity(item: Item) -> Identity:
    """Which order, and which replay of it."""
    return Identity(item.key, item.round)
