"""Server-sent events: what one looks like, who listens, and the answer that carries them.

A listener has no queue. It holds the newest event only, which takes the place of one that was not
sent yet: every event here tells a whole state, so a slow reader misses steps in between and costs
no memory. One that takes nothing at all is cut off.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from msgspec import Struct

from ingest.answers import CLOSE, Headers
from ingest.ending import Ending
from ingest.exchange import HungUp, Scope, Send
from ingest.hangup import CONNECTION

# A comment is sent when nothing else was for that long, so that nobody between takes the stream for
# dead, and we notice a client that is gone without a word.
HEARTBEAT_S = 15.0
# How long a client may take nothing of what it is sent.
STALLED_S_MAX = 10.0
# What may lie unread for one client: in the process, and in the kernel (which doubles it).
WRITE_BUFFER_BYTES_MAX = 16 * 1024
SOCKET_BUFFER_BYTES = 16 * 1024
# Then it ends and the client comes again: to whatever front, with a key that is looked at again.
STREAM_S_MAX = 3600.0
# When a client comes again after the end of its stream.
RETRY_MS = 2000

# The end of the stream is the end of the connection: so a front that ends never has to announce it
# in the middle of an answer.
HEADERS: Headers = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
    *CLOSE,
)
HEARTBEAT = b": heartbeat\n\n"
RETRY = b"retry: %d\n\n" % RETRY_MS

logger = logging.getLogger(__name__)


class Stalled(Exception):
    """The client took nothing for STALLED_S_MAX."""


class Event(Struct, frozen=True):
    """One event: `data` is JSON, so without line ends. After the `last` nothing comes."""

    name: str
    data: bytes
    id: str = ""
    last: bool = False

    def text(self) -> bytes:
        """As it is sent."""
        identity = f"id: {self.id}\n" if self.id else ""
        return f"event: {self.name}\n{identity}data: ".encode() + self.data + b"\n\n"


class Listener:
    """One client's stream, as those see it who have something to tell. `known`: the id of the
    event that the client had last."""

    def __init__(self, known: str = "") -> None:
        self._known = known
        self._news = asyncio.Event()
        self._newest: Event | None = None
        self._over = False

    def tell(self, event: Event) -> None:
        """Instead of any that was not sent yet; nothing, if it is known."""
        if self._over:
            return
        if event.last:
            self.end()
        if not event.id or event.id != self._known:
            self._newest, self._known = event, event.id
            self._news.set()

    def end(self) -> None:
        """After what was told, nothing more."""
        self._over = True
        self._news.set()

    async def news(self, timeout_s: float) -> Event | None:
        """The newest event, None after the last one; TimeoutError when there is nothing."""
        async with asyncio.timeout(timeout_s):
            await self._news.wait()
        event, self._newest = self._newest, None
        if not self._over:
            self._news.clear()
        return event


class Rounds:
    """What is found out again and again while anybody listens, and once for all who do.

    One round at a time, `every_s` after the end of the one before. Nobody listens: nothing runs.
    """

    def __init__(self, one: Callable[[], Awaitable[None]], every_s: float) -> None:
        self.listeners: set[Listener] = set()
        self._one = one
        self._every_s = every_s
        self._running: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        return self._running is not None

    @contextmanager
    def listening(self, listener: Listener) -> Iterator[None]:
        """Meanwhile it is told."""
        self.listeners.add(listener)
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        try:
            yield
        finally:
            self.listeners.discard(listener)

    async def _run(self) -> None:
        try:
            while self.listeners:
                await self._one()
                await asyncio.sleep(self._every_s)
        except Exception:
            logger.exception("a mistake of ours in /events")
            for listener in self.listeners:
                listener.end()
        finally:
            self._running = None


async def stream(scope: Scope, send: Send, listener: Listener, ending: Ending) -> None:
    """Answers with what the listener is told, until the last of it, until this front ends or until
    STREAM_S_MAX. Raises Stalled; HungUp when the client is gone already. HEAD gets the head."""
    _bound_buffers(scope.get("extensions", {}).get(CONNECTION, {}))
    await send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
    if scope["method"] != "HEAD":
        await _send(send, RETRY)
        with ending.telling(listener.end):
            await _send_news(send, listener)
    await _send(send, b"", more=False)


async def _send_news(send: Send, listener: Listener) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + STREAM_S_MAX
    while loop.time() < until:
        try:
            event = await listener.news(HEARTBEAT_S)
        except TimeoutError:
            await _send(send, HEARTBEAT)
            continue
        if event is None:
            return
        await _send(send, event.text())


async def _send(send: Send, text: bytes, *, more: bool = True) -> None:
    try:
        async with asyncio.timeout(STALLED_S_MAX):
            await send({"type": "http.response.body", "body": text, "more_body": more})
    except TimeoutError:
        raise Stalled from None


def _bound_buffers(connection: dict[str, Any]) -> None:
    transport: asyncio.Transport | None = connection.get("transport")
    if transport is None:
        return
    if transport.is_closing():
        raise HungUp
    transport.set_write_buffer_limits(WRITE_BUFFER_BYTES_MAX)
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
