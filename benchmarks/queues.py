"""What many would write instead of Rasher: a Starlette endpoint that puts orders on a queue.

    python -m benchmarks.queues asyncio PORT CORE
    python -m benchmarks.queues multiprocessing PORT CORE

Both read orders with Rasher's schema, make the id as it does and answer alike. Whoever takes from
the queue throws orders away: a task of the same process, or a process on CORE. `GET /taken` tells
how many. When the process dies, so does whatever is in the queue.
"""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import queue
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from benchmarks.services import serve
from ingest.ids import OrderIds
from processors.schema import Invalid, Malformed, Order, decode_order, format_uuid

CAPACITY = 100
FULL_POLL_S = 0.001
STOP_S_MAX = 5.0

Put = Callable[[tuple[bytes, Order]], Awaitable[int]]


class Endpoint:
    """`put` takes key and order, waits for room, and gives the orders ahead of it."""

    def __init__(self, put: Put) -> None:
        self._put = put
        self._new_id = OrderIds()

    async def post(self, request: Request) -> Response:
        try:
            order_id, order = decode_order(await request.body())
        except (Malformed, Invalid) as error:
            return JSONResponse({"detail": str(error)}, 422)
        key = order_id or self._new_id()
        position = await self._put((key, order))
        name = format_uuid(key)
        content = {"order_id": name, "status": "queued", "position": position}
        return JSONResponse(content, 202, {"location": f"/orders/{name}"})


class InProcess:
    """asyncio.Queue and a task that takes from it."""

    def __init__(self) -> None:
        self.taken = 0
        self._queue: asyncio.Queue[tuple[bytes, Order]] = asyncio.Queue(CAPACITY)

    async def put(self, item: tuple[bytes, Order]) -> int:
        await self._queue.put(item)
        return self._queue.qsize() - 1

    @asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        taking = asyncio.create_task(self._take())
        yield
        taking.cancel()

    async def _take(self) -> None:
        while True:
            await self._queue.get()
            self.taken += 1


class OtherProcess:
    """multiprocessing.Queue and a process that takes from it."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._queue: Any = context.Queue(CAPACITY)
        self._taken: Any = context.Value(ctypes.c_int64, lock=False)
        arguments = (self._queue, self._taken)
        self._process = context.Process(target=take_all, args=arguments, daemon=True)

    @property
    def taken(self) -> int:
        return int(self._taken.value)

    async def put(self, item: tuple[bytes, Order]) -> int:
        # `put` would stop the whole event loop at a full queue, and a thread for each order would
        # cost more than it does.
        while True:
            try:
                self._queue.put_nowait(item)
            except queue.Full:
                await asyncio.sleep(FULL_POLL_S)
            else:
                return max(0, int(self._queue.qsize()) - 1)

    @asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        self._process.start()
        yield
        self._process.kill()
        self._process.join(STOP_S_MAX)
        self._queue.cancel_join_thread()


def take_all(source: Any, taken: Any) -> None:
    """The other process."""
    while True:
        source.get()
        taken.value += 1


def make_app(line: InProcess | OtherProcess) -> Starlette:
    """The service."""

    async def taken(_request: Request) -> Response:
        return JSONResponse(line.taken)

    routes = [
        Route("/orders", Endpoint(line.put).post, methods=["POST"]),
        Route("/taken", taken),
    ]
    return Starlette(routes=routes, lifespan=line.lifespan)


def main(argv: Sequence[str]) -> int:
    """See the head of this module."""
    kind, port = argv
    serve(make_app(InProcess() if kind == "asyncio" else OtherProcess()), port)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
