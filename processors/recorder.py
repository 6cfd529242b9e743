"""What became of rounds, written for all endpoints together: a transaction is what costs the
workers most."""

from __future__ import annotations

import asyncio
import logging

from processors import deliveries
from processors.commits import happened
from processors.deliveries import Told
from processors.store import Store, StoreBusy, StoreUnavailable

log = logging.getLogger("rasher.relay")

RECORD_EVERY_S = 0.05
# Rounds of this many endpoints go into one transaction.
RECORDED_MAX = 32
# After the database was away.
AGAIN_S = 5.0


class Recorder:
    """Writes what became of rounds, those of several endpoints in one transaction."""

    def __init__(self, store: Store, stop: asyncio.Event) -> None:
        self._store = store
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
            some = self._waiting[:RECORDED_MAX]
            try:
                await asyncio.to_thread(
                    self._store.commit, deliveries.record, [told for told, _ in some]
                )
            except StoreUnavailable as error:
                await self._later(error)
                continue
            for done in self._taken_off(len(some)):
                done.set_result(None)
            await asyncio.sleep(RECORD_EVERY_S)

    async def _later(self, error: StoreUnavailable) -> None:
        if not isinstance(error, StoreBusy):
            log.warning("%s; what was told is recorded later", error)
            await happened(self._stop, AGAIN_S)
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
