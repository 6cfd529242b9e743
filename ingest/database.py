"""The database, asked from the event loop through a few threads of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa

from ingest.answers import Refused, unavailable
from ingest.problems import DATABASE_AWAY
from processors.store import Store, StoreBroken, StoreError, StoreUnavailable

THREADS = 4
RETRY_AFTER_S = 5
PROBE_S_MAX = 1.0

P = ParamSpec("P")
T = TypeVar("T")


class Database:
    """Runs functions that take the store first, in threads. `on_broken`: called by the
    loop when a write or a sync of the database has failed; it is not expected to return.

    A question waits in its own request until a thread is free, so nothing queues up for clients
    that are gone: what waits is bounded by the front's connections.
    """

    def __init__(
        self,
        store: Store,
        threads: int = THREADS,
        on_broken: Callable[[StoreBroken], object] | None = None,
    ) -> None:
        self._store = store
        self._on_broken = on_broken or (lambda _: None)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="rasher-database")
        self._free = asyncio.Semaphore(threads)
        self._probe: asyncio.Task[bool] | None = None

    async def ask(
        self, function: Callable[Concatenate[Store, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What the function returns; Refused with 503 when the database can't be asked."""
        loop = asyncio.get_running_loop()

        def answer() -> T:
            try:
                return function(self._store, *args, **kwargs)
            except StoreBroken as error:
                # From here, for whoever asked may be gone; and before anybody is answered.
                loop.call_soon_threadsafe(self._on_broken, error)
                raise

        await self._free.acquire()
        future = self._pool.submit(answer)
        # Not when the caller stops waiting: the thread is busy until the function returns.
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._free.release))
        try:
            return await asyncio.wrap_future(future)
        except (StoreUnavailable, StoreError) as error:
            raise Refused(unavailable(DATABASE_AWAY, str(error), RETRY_AFTER_S)) from error

    async def reachable(self) -> bool:
        """Whether the database answers within a second. One probe at a time, however many ask."""
        probe = self._probe
        if probe is None or probe.done():
            probe = self._probe = asyncio.create_task(self._answers())
        done, _ = await asyncio.wait({probe}, timeout=PROBE_S_MAX)
        return bool(done) and probe.result()

    async def close(self) -> None:
        """Ends the threads, after what they are at."""
        if self._probe is not None:
            await asyncio.wait({self._probe})
        await asyncio.to_thread(self._pool.shutdown, wait=True, cancel_futures=True)

    async def _answers(self) -> bool:
        try:
            await self.ask(_touch)
        except Refused:
            return False
        return True


def _touch(store: Store) -> None:
    with store.reading() as connection:
        connection.execute(sa.text("SELECT 1"))
