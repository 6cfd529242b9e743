"""Clients that mean no good, by the thousand, as a process of their own.

    python -m tests.ingest.visitors PORT KIND COUNT SECONDS

KIND is `head` or `body` (a byte a second), or `reader` (asks for much and takes a byte a second).
Each connects again as soon as it was closed. Prints one JSON line: how many connections were made,
how many the server ended, and for how long the longest lived.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections.abc import Iterable
from contextlib import suppress

import uvloop

from tests.ingest.malformed import HOST, START, TYPE

QUIET_S = 0.05
AT_ONCE = 100
SMALL_BUFFER_BYTES = 4096
BEGUN = {
    "head": START + b"X: ",
    "body": START + HOST + TYPE + b"Content-Length: 9999\r\n\r\n",
    # More than the kernel's buffers and the front's hold together.
    "reader": b"GET /docs/assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n" * 4,
}


class Visit(asyncio.Protocol):
    """Sends one text, hears the server out, leaves when that was silent for QUIET_S."""

    def __init__(self, reads: list[bytes]) -> None:
        self._reads = reads
        self._timer: asyncio.TimerHandle | None = None
        self.heard = bytearray()
        self.over = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        for data in self._reads:
            transport.write(data)
        self._wait()

    def _wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(QUIET_S, self._leave)

    def _leave(self) -> None:
        if not self._transport.is_closing():
            self._transport.write_eof()

    def data_received(self, data: bytes) -> None:
        self.heard += data
        self._wait()

    def connection_lost(self, _exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self.over.done():
            self.over.set_result(bytes(self.heard))


async def visit(port: int, reads: list[bytes], patience_s: float) -> bytes | None:
    """What was answered; None: the server did not end the connection in time."""
    loop = asyncio.get_running_loop()
    transport, one = await loop.create_connection(lambda: Visit(reads), "127.0.0.1", port)
    try:
        async with asyncio.timeout(patience_s):
            return await one.over  # type: ignore[no-any-return]
    except TimeoutError:
        return None
    finally:
        transport.close()


async def visit_all(
    port: int, texts: Iterable[list[bytes]], patience_s: float
) -> list[bytes | None]:
    """All of them, AT_ONCE at a time, in no order -> the first bytes of what was answered."""
    heard: list[bytes | None] = []
    waiting = iter(texts)

    async def go() -> None:
        for reads in waiting:
            heard.append(await visit(port, reads, patience_s))

    await asyncio.gather(*(go() for _ in range(AT_ONCE)))
    return heard


class Slow:
    """COUNT clients of one kind."""

    def __init__(self, port: int, kind: str) -> None:
        self._port = port
        self._kind = kind
        self.made = self.ended = 0
        self.longest_s = 0.0

    async def be(self, until_s: float) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < until_s:
            with socket.socket() as client:
                client.setblocking(False)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
                await loop.sock_connect(client, ("127.0.0.1", self._port))
                self.made += 1
                began_s = time.monotonic()
                ended = await self._drip(client, until_s)
                self.ended += ended
                self.longest_s = max(self.longest_s, time.monotonic() - began_s)

    async def _drip(self, client: socket.socket, until_s: float) -> bool:
        """Whether the server ended it."""
        loop = asyncio.get_running_loop()
        with suppress(BlockingIOError):
            client.send(BEGUN[self._kind])
        while loop.time() < until_s:
            await asyncio.sleep(1)
            try:
                if self._kind == "reader":
                    # What came before a reset can still be read.
                    if client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or not client.recv(1):
                        return True
                    continue
                client.send(b"x")
                client.recv(65536)
            except BlockingIOError:
                continue
            except OSError:
                return True
            return True  # it answers only to refuse
        return False


async def slow(port: int, kind: str, count: int, seconds: float) -> Slow:
    crowd = Slow(port, kind)
    until_s = asyncio.get_running_loop().time() + seconds
    await asyncio.gather(*(crowd.be(until_s) for _ in range(count)))
    return crowd


def main(argv: list[str]) -> None:
    port, kind, count, seconds = argv
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        crowd = runner.run(slow(int(port), kind, int(count), float(seconds)))
    found = {"made": crowd.made, "ended": crowd.ended, "longest_s": round(crowd.longest_s, 1)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
