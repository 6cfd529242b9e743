"""Receivers of webhooks that behave as they are told, on the loop of the test."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
FAILS = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n"
GONE = b"HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n"
SECRET = "whsec_" + "c2Vj" * 10


@dataclass
class Message:
    """What came: headers by lower-case name."""

    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def content(self) -> Any:
        return json.loads(self.body)


Behaviour = Callable[[Message, asyncio.StreamWriter], Awaitable[bytes]]


async def takes_all(_message: Message, _writer: asyncio.StreamWriter) -> bytes:
    return OK


@dataclass
class Partner:
    """`behave` is what an answer is made with; raising ConnectionError resets the connection."""

    behave: Behaviour = takes_all
    heard: list[Message] = field(default_factory=list)
    connections: int = 0
    port: int = 0
    scheme: str = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/hook"

    @property
    def ids(self) -> list[str]:
        return [one.id for one in self.heard]

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                message = await read_message(reader)
                self.heard.append(message)
                writer.write(await self.behave(message, writer))
                await writer.drain()
        writer.transport.abort()


async def read_message(reader: asyncio.StreamReader) -> Message:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
    headers = {}
    for line in head[1:]:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return Message(headers, await reader.readexactly(int(headers["content-length"])))


@asynccontextmanager
async def partner(
    behave: Behaviour = takes_all, context: ssl.SSLContext | None = None
) -> AsyncIterator[Partner]:
    """One that listens, over TLS with that context."""
    one = Partner(behave, scheme="https" if context else "http")
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(asyncio.CancelledError):
            await one.answer(reader, writer)
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    one.port = server.sockets[0].getsockname()[1]
    try:
        yield one
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


async def until(true: Callable[[], object], patience_s: float = 20.0) -> None:
    """Looks whenever the loop has turned."""
    async with asyncio.timeout(patience_s):
        while not true():  # noqa: ASYNC110 - what it looks at tells nobody
            await asyncio.sleep(0.002)
