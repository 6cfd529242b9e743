"""The services that end_to_end.py compares Rasher with; each call of this module is a process.

    python -m benchmarks.services synchronous FILE PORT
    python -m benchmarks.services publisher AMQP_PORT UNCONFIRMED PORT
    python -m benchmarks.services consumer AMQP_PORT PREFETCH FILE

All decode orders with Rasher's schema and settle them with its worker's functions on its tables, so
that what differs is the way between the two.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from benchmarks.stock import url_of
from ingest.ids import OrderIds
from processors.instants import now_us
from processors.jobs import Job, read_job
from processors.pipeline import fefo
from processors.recording import Recorder
from processors.schema import (
    Invalid,
    Malformed,
    RecordHeader,
    body_hash,
    decode_order,
    encode_header,
    encode_order,
    format_uuid,
)
from processors.store import Store
from ringbuf import Item

QUEUE = "orders"
BATCH = 64
NO_READER: Any = None  # jobs of these services lie in no hand


class Settler:
    """Settles orders that did not come out of a ring. One thread at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._processor = fefo()
        self._recorder = Recorder(int.from_bytes(os.urandom(8), "big"))

    def settle(self, items: Sequence[Item], *, redelivered: bool) -> list[str]:
        """All in one transaction; statuses. `redelivered`: skips those that have an outcome."""
        jobs = [read_job(NO_READER, item, now_us()) for item in items]
        with self._store.writing() as transaction:
            if redelivered:
                known = self._recorder.known(transaction, [item.key for item in items])
                jobs = list({j.item.key: j for j in jobs if j.item.key not in known}.values())
            return self._decide(transaction, jobs)

    def _decide(self, transaction: Any, jobs: list[Job]) -> list[str]:
        works = [job.work for job in jobs if job.work is not None]
        outcomes = self._processor(transaction, works, now_us()) if works else []
        self._recorder.record(transaction, list(zip(jobs, outcomes, strict=True)))
        return [outcome.status for outcome in outcomes]


def make_item(key: bytes, payload: bytes, number: int) -> Item:
    """As a worker gets it from the ring."""
    header = encode_header(RecordHeader(body_hash(payload)))
    return Item(payload, key, number, accepted_ns=now_us() * 1000, header=header)


async def read_order(request: Request, new_id: Callable[[], bytes]) -> tuple[bytes, bytes]:
    """Key and payload. Raises Malformed, Invalid."""
    order_id, order = decode_order(await request.body())
    return order_id or new_id(), encode_order(order)


class Synchronous:
    """Answers when the order is committed: the transaction in a thread of Starlette's pool.

    A lock lets one thread at a time to SQLite, which has one writer: left to themselves they would
    all ask for its lock again and again.
    """

    def __init__(self, file: Path) -> None:
        self._settler = Settler(Store.open(url_of(file), connections_max=1))
        self._lock = threading.Lock()
        self._new_id = OrderIds()
        self._number = 0

    async def post(self, request: Request) -> Response:
        try:
            key, payload = await read_order(request, self._new_id)
        except (Malformed, Invalid) as error:
            return JSONResponse({"detail": str(error)}, 422)
        status = await run_in_threadpool(self._settle, key, payload)
        return JSONResponse({"order_id": format_uuid(key), "status": status}, 201)

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/orders", self.post, methods=["POST"])])

    def _settle(self, key: bytes, payload: bytes) -> str:
        with self._lock:
            self._number += 1
            item = make_item(key, payload, self._number)
            return self._settler.settle([item], redelivered=False)[0]


class Publisher:
    """Answers when RabbitMQ has confirmed the order: persistent, in a durable queue. `unconfirmed`:
    how many may be under way at once."""

    def __init__(self, amqp_port: int, unconfirmed: int) -> None:
        self._url = f"amqp://guest:guest@127.0.0.1:{amqp_port}/"
        self._window = asyncio.Semaphore(unconfirmed)
        self._new_id = OrderIds()

    @asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        import aio_pika  # noqa: PLC0415 - a peer, not always installed

        self._persistent = aio_pika.DeliveryMode.PERSISTENT
        self._message = aio_pika.Message
        connection: Any = await aio_pika.connect(self._url)
        async with connection:
            channel = await connection.channel(publisher_confirms=True)
            await channel.declare_queue(QUEUE, durable=True)
            self._exchange = channel.default_exchange
            yield

    async def post(self, request: Request) -> Response:
        try:
            key, payload = await read_order(request, self._new_id)
        except (Malformed, Invalid) as error:
            return JSONResponse({"detail": str(error)}, 422)
        message = self._message(key + payload, delivery_mode=self._persistent)
        async with self._window:
            await self._exchange.publish(message, QUEUE)
        return JSONResponse({"order_id": format_uuid(key), "status": "queued"}, 202)

    def app(self) -> Starlette:
        routes = [Route("/orders", self.post, methods=["POST"])]
        return Starlette(routes=routes, lifespan=self.lifespan)


async def consume(amqp_port: int, prefetch: int, file: Path) -> None:
    """Takes what is there, up to BATCH, commits it, and acknowledges it all at once."""
    import aio_pika  # noqa: PLC0415 - a peer, not always installed

    settler = Settler(Store.open(url_of(file), connections_max=1))
    arrived: asyncio.Queue[Any] = asyncio.Queue(prefetch)
    connection: Any = await aio_pika.connect(f"amqp://guest:guest@127.0.0.1:{amqp_port}/")
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=prefetch)
        queue = await channel.declare_queue(QUEUE, durable=True)
        await queue.consume(arrived.put)
        number = 0
        while True:
            messages = [await arrived.get()]
            while len(messages) < BATCH and not arrived.empty():
                messages.append(arrived.get_nowait())
            items = [
                make_item(m.body[:16], m.body[16:], number + i) for i, m in enumerate(messages)
            ]
            number += len(items)
            settler.settle(items, redelivered=True)
            await messages[-1].ack(multiple=True)


def serve(app: Starlette, port: str) -> None:
    """By uvicorn, as Rasher's front is: uvloop, httptools, no access log."""
    uvicorn.run(
        app, host="127.0.0.1", port=int(port), loop="uvloop", http="httptools",
        access_log=False, log_level="warning", ws="none", backlog=4096,
    )  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """See the head of this module."""
    kind, *words = argv
    if kind == "synchronous":
        serve(Synchronous(Path(words[0])).app(), words[1])
    elif kind == "publisher":
        serve(Publisher(int(words[0]), int(words[1])).app(), words[2])
    elif kind == "consumer":
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(consume(int(words[0]), int(words[1]), Path(words[2])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
