"""Bulks by hand and by httpx, for the tests of a front in this process."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any

import httpx

from ringbuf import Empty, Item
from tests.ingest.conftest import Raw, Service

ORDER = b'{"customer":"Funky Foods","lines":[{"sku":"BELLY","quantity":"1.5"}]}'
NDJSON = {"content-type": "application/x-ndjson"}
STREAM = {**NDJSON, "accept": "application/x-ndjson"}


def own(number: int, body: bytes = ORDER) -> bytes:
    return b'{"order_id":"018f0000-0000-7000-8000-%012d",' % number + body[1:]


def numbered(count: int) -> bytes:
    """Orders that tell their lines."""
    return b"".join(
        ORDER.replace(b"}]", b'}],"reference":"%d"' % line) + b"\n" for line in range(1, count + 1)
    )


async def bulk(
    service: Service, body: bytes, query: str = "", **headers: str
) -> tuple[httpx.Response, Any]:
    answer = await service.client.post(
        f"/orders/bulk{query}", content=body, headers={**NDJSON, **headers}
    )
    return answer, answer.json()


def head(stream: bool = False, length: int | None = None) -> bytes:
    """Of a bulk sent by hand, chunked without a length."""
    size = b"transfer-encoding: chunked" if length is None else b"content-length: %d" % length
    accept = b"accept: application/x-ndjson\r\n" if stream else b""
    return (
        b"POST /orders/bulk HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-ndjson\r\n"
        + accept + size + b"\r\n\r\n"
    )  # fmt: skip


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def result(raw: Raw) -> Any:
    """The next of the results that are streamed one in a chunk; None at the end."""
    size = int((await asyncio.wait_for(raw.reader.readuntil(b"\r\n"), 20)).strip(), 16)
    data = await raw.reader.readexactly(size + 2)
    return json.loads(data) if size else None


async def opened(service: Service, *parts: bytes) -> Raw:
    """A streamed bulk of which this was sent."""
    raw = await service.raw()
    await raw.send(head(stream=True) + b"".join(map(chunk, parts)))
    return raw


async def head_of(raw: Raw) -> bytes:
    return await asyncio.wait_for(raw.reader.readuntil(b"\r\n\r\n"), 20)


def waiting(service: Service) -> list[Item]:
    return service.ring.snapshot().waiting


class Emptying:
    """Takes orders out of the ring for as long as it is entered, as a worker would."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.taken: list[Item] = []

    async def __aenter__(self) -> Emptying:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        while True:
            with suppress(Empty):
                items = self.service.reader.take(64, timeout=0)
                self.taken += items
                self.service.reader.release(items)
            await asyncio.sleep(0)


async def unchunked(raw: Raw) -> bytes:
    found = b""
    while size := int(await asyncio.wait_for(raw.reader.readuntil(b"\r\n"), 20), 16):
        found += (await raw.reader.readexactly(size + 2))[:-2]
    return found
