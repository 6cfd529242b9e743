"""What became of rounds, written for all endpoints together: a transaction is what costs the
workers most."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from processors import deliveries
from processors.commits import happened
from processors.deliveries import Told
from processors.relay_access import Access
from processors.store import StoreBusy, StoreUnavailable

log = logging.getLogger("rasher.relay")

RECORD_EVERY_S = 0.05
# Rounds go into one transaction while they have so many events together: orders wait for it.
RECORDED_MAX = 512
# After the database was away.
AGAIN_S = 5.0


class Recorder:
    """Writes what became of rounds, those of several endpoints in one transaction."""

    def __init__(self, access: Access, stop: asyncio.Event) -> None:
        self._access = access
        self._stop = stop
        self._waiting: list[tuple[Told, asyncio.Future[None]]] = []
        self._some = asyncio.Event()

    async def record(self, told: Told) -> None:
        """Returns when it is committed; tries again while the database is away, until the relay is
        stopped: then it raises StoreUnavailable, and it is not known to be committed."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((told, done))
        self._some.set()
        await done

    async def run(self) -> None:
        """Until cancelled. Raises StoreBroken, StoreError."""
        while True:
            await self._some.wait()
            told = self._first()
            try:
                await self._access.write(partial(deliveries.record, told=told))
            except StoreUnavailable as error:
                await self._later(error)
                continue
            for done in self._taken_off(len(told)):
                done.set_result(None)
            await happened(self._stop, max(RECORD_EVERY_S, self._access.pause_s()))

    def _first(self) -> list[Told]:
        """Those that have RECORDED_MAX events together, one at least."""
        some, events = list[Told](), 0
        for told, _ in self._waiting:
            events += len(told.ended)
            if some and events > RECORDED_MAX:
                break
            some.append(told)
        return some

    async def _later(self, error: StoreUnavailable) -> None:
        busy = isinstance(error, StoreBusy)
        if not busy:
            log.warning("%s; what was told is recorded later", error)
        await happened(self._stop, RECORD_EVERY_S if busy else AGAIN_S)
        if self._stop.is_set():
            for done in self._taken_off(len(self._waiting)):
                done.set_exception(error)

    def _taken_off(self, count: int) -> list[asyncio.Future[None]]:
        """The first ones, as far as somebody still waits for them."""
        taken = self._waiting[:count]
        del self._waiting[:count]
        if not self._waiting:
            self._some.clear()
        return [done for _, done in taken if not done.done()]
