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


class Flight:
    """Asks one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known = Known()
        self._away_until = 0.0

    async def settled(self, items: Sequence[Item]) -> set[Identity]:
        """Those of them that have an outcome, as far as can be told now."""
        if not items or time.monotonic() < self._away_until:
            return set()
        try:
            async with asyncio.timeout(ASKED_S_MAX):
                return await self._database.ask(self._ask, [identity(item) for item in items])
        except (Refused, TimeoutError):
            self._away_until = time.monotonic() + AWAY_S
            return set()

    def _ask(self, store: Store, identities: Sequence[Identity]) -> set[Identity]:
        with store.reading() as connection:
            return self._known.of(connection, identities)


def identity(item: Item) -> Identity:
    """Which order, and which replay of it."""
    return Identity(item.key, item.round)
