"""The service of `rasher demo` and its customers: a program of its own, and HTTP from here."""

from __future__ import annotations

import asyncio
import os
import random
import re
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import IO

import aiohttp
import msgspec

from ingest.ids import OrderIds
from processors.schema import format_uuid
from processors.settings import Settings

START_S_MAX = 30.0
# It is empty by then; a relay would go on with what partners are slow to take.
GRACE_S = 5
STOP_S_MAX = 20.0
ANSWER_S_MAX = 30.0
# A customer's, between an answer and the next order.
THINK_S = 0.25
LOG_LINES_KEPT = 40
READY = re.compile(r"ready on (http://\S+):")
# Ends with whoever started it, however that ended.
BORN = (
    "import sys; from processors.child import die_with_parent; "
    "die_with_parent(int(sys.argv.pop(1))); import supervisor; sys.exit(supervisor.main())"
)
NO_ANSWER = 0


class ShopClosed(Exception):
    """The service did not start, or ended by itself; the text has the end of its log."""


class Shop:
    """The running service, at `url`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.url = ""
        self._process = process
        self._log: deque[str] = deque(maxlen=LOG_LINES_KEPT)
        self._open = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    @property
    def ended(self) -> bool:
        """Whether it is gone."""
        return self._process.returncode is not None

    async def opened(self) -> None:
        """Waits until it takes orders. Raises ShopClosed."""
        try:
            async with asyncio.timeout(START_S_MAX):
                await self._open.wait()
        except TimeoutError:
            raise ShopClosed(self.why(f"not ready within {START_S_MAX:g} s")) from None
        if not self.url:
            raise ShopClosed(self.why("it could not start"))

    def why(self, what: str) -> str:
        """That, and the end of its log."""
        return "\n".join([f"the service: {what}", *self._log])

    async def close(self) -> None:
        """Lets it work off what waits, and waits for its end."""
        if not self.ended:
            self._process.terminate()
        try:
            async with asyncio.timeout(STOP_S_MAX):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await self._reading

    async def _read(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            text = line.decode(errors="replace").rstrip()
            self._log.append(text)
            if match := READY.search(text):
                self.url = match[1]
                self._open.set()
        self._open.set()


@asynccontextmanager
async def open_shop(settings: Settings, config: str, processor: str) -> AsyncIterator[Shop]:
    """Runs the program with these settings and that rasher.toml. Raises ShopClosed."""
    flags = {
        "data-dir": settings.data_dir,
        "database": settings.database,
        "ring-dir": settings.ring.ring_dir,
        "capacity": settings.ring.capacity,
        "durability": settings.durability,
        "fronts": settings.http.fronts,
        "workers": settings.work.workers,
        "config": config,
        "processor": processor,
        "graceful-timeout": GRACE_S,
        "port": 0,
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("RASHER_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", BORN, str(os.getpid()), *words,
        stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        env=environ, start_new_session=True,
    )  # fmt: skip
    shop = Shop(process)
    try:
        await shop.opened()
        yield shop
    finally:
        await asyncio.shield(shop.close())


class Customers:
    """Order one kilogram of something, wait for the answer, think, order again. As many of them as
    `crowd` says are at it. Every id goes to the ledger with its status, 0 = no answer."""

    def __init__(
        self, shop: Shop, session: aiohttp.ClientSession, skus: Sequence[str], ledger: IO[str]
    ) -> None:
        self._shop = shop
        self._session = session
        self._skus = skus
        # The first are wanted most, as ever.
        self._weights = [1 / (place + 3) for place in range(len(skus))]
        self._ledger = ledger
        self._order_ids = OrderIds()
        self.statuses: dict[int, int] = {}
        self.latencies_s: list[float] = []
        self.longest_s = 0.0

    async def come(self, number: int, crowd: Callable[[], int], over: Callable[[], bool]) -> None:
        """The life of one customer."""
        await asyncio.sleep(random.uniform(0, THINK_S))
        while not over():
            if number < crowd():
                await self._order()
            await asyncio.sleep(THINK_S * random.uniform(0.5, 1.5))

    async def _order(self) -> None:
        order_id = format_uuid(self._order_ids())
        (sku,) = random.choices(self._skus, self._weights)
        begun, status = time.monotonic(), NO_ANSWER
        body = {
            "order_id": order_id, "customer": "flash sale",
            "lines": [{"sku": sku, "quantity": "1"}],
        }  # fmt: skip
        try:
            async with self._session.post(
                f"{self._shop.url}/orders",
                data=msgspec.json.encode(body),
                headers={"content-type": "application/json"},
            ) as answer:
                status = answer.status
        except (aiohttp.ClientError, TimeoutError, OSError):
            pass
        finally:
            self._ledger.write(f"{order_id} {status}\n")
            self.statuses[status] = self.statuses.get(status, 0) + 1
        self.latencies_s.append(time.monotonic() - begun)
        self.longest_s = max(self.longest_s, self.latencies_s[-1])
