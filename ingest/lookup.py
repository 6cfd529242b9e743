"""Earlier orders under the same id, asked of the database many at a time.

One question is under way; whoever comes meanwhile is in the next one. So a burst of orders with
ids of their own costs a few statements, not one and a thread's wake-up for each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from msgspec import Struct

from ingest.database import Database
from processors.orders import KnownOrder, KnownOrders

KEYS_MAX = 256

Waiting = tuple[bytes, "asyncio.Future[Earlier | None]"]


class Earlier(Struct, frozen=True):
    """What is known of an order that came before under the same id; `committed_us`: when it got its
    outcome, 0 without one."""

    digest: bytes
    status: str
    position: int = 0
    committed_us: int = 0


class Lookup:
    """What waits is bounded by the front's connections: each waits in its own request."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known = KnownOrders()
        self._waiting: list[Waiting] = []
        self._asking: asyncio.Task[None] | None = None

    async def find(self, key: bytes) -> Earlier | None:
        """The order of that id, if it has an outcome. Refused when the database can't be asked."""
        return await self._ask_for(key)

    async def find_many(self, keys: Collection[bytes]) -> dict[bytes, Earlier]:
        """Those of these ids that have an outcome. Refused when the database can't be asked."""
        answers = dict(zip(keys, await asyncio.gather(*map(self._ask_for, keys)), strict=True))
        return {key: earlier for key, earlier in answers.items() if earlier is not None}

    def _ask_for(self, key: bytes) -> asyncio.Future[Earlier | None]:
        future: asyncio.Future[Earlier | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((key, future))
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask_all())
        return future

    async def _ask_all(self) -> None:
        while self._waiting:
            some, self._waiting = self._waiting[:KEYS_MAX], self._waiting[KEYS_MAX:]
            await self._ask([one for one in some if not one[1].done()])
        self._asking = None

    async def _ask(self, some: list[Waiting]) -> None:
        answers: list[Earlier | Exception | None]
        try:
            found = await self._database.ask(self._known.find, [key for key, _ in some])
            answers = [settled(found.get(key)) for key, _ in some]
        except Exception as error:
            # Each waits in a request of its own and has to be told, whatever went wrong.
            answers = [error] * len(some)
        for (_, future), answer in zip(some, answers, strict=True):
            settle(future, answer)


def settled(known: KnownOrder | None) -> Earlier | None:
    """What the database says of an order."""
    if known is None:
        return None
    return Earlier(known.digest, known.status, committed_us=known.committed_us)


def settle(future: asyncio.Future[Earlier | None], answer: Earlier | Exception | None) -> None:
    """Answers, unless the client hung up meanwhile."""
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
