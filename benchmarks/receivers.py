"""The partners of benchmarks/partners.py, all in this one process: each a receiver of webhooks of
its own kind, on a port of its own.

    python -m benchmarks.receivers REPORT_PORT KIND [KIND ...]

    healthy    answers 204 to what bears a good signature, else 401
    hangs      reads and never answers
    fails      answers 500
    resets     reads and resets the connection
    trickles   answers 200, a byte a second
    endless    answers 200 with a gigabyte behind it
    redirects  answers 302, to itself

Whoever connects to REPORT_PORT gets one line of JSON, a `Heard` for each partner. They share the
machine with what is measured, so they do no more than they must: bytes, no HTTP library.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import os
import re
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import msgspec
import uvloop
from msgspec import Struct

KEY = hashlib.sha256(b"benchmarks.receivers").digest()
SECRET = f"whsec_{base64.b64encode(KEY).decode()}"
ELSEWHERE = b"/elsewhere"
NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"
REFUSED = b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n"
FAILED = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n"
MOVED = b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:%d%b\r\ncontent-length: 0\r\n\r\n"
SLOWLY = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
GIGABYTE = 10**9
FOR_EVER = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % GIGABYTE
# Of a long answer, each time: no faster than over a network, where the relay hangs up before the
# kernel has copied much for nothing.
CHUNK = bytes(16_384)
CHUNK_S = 0.001
REQUEST_BYTES_MAX = 1 << 20
DRIP_S = 1.0
PARENT_LOOK_S = 1.0
NO_LINGER = struct.pack("ii", 1, 0)  # a close is a reset

HEADER = rb"(?:^|\n)%b: *([^\r\n]*)"
LENGTH, ID, STAMP, SIGNATURE = (
    re.compile(HEADER % name, re.IGNORECASE)
    for name in (b"content-length", b"webhook-id", b"webhook-timestamp", b"webhook-signature")
)


class Heard(Struct, frozen=True):
    """What came to a partner. `events`: different ids, `ids_sum`: of them as numbers, in hex;
    `again`: messages whose id had come before. An attempt lasts from the request being there to the
    answer being out, or to the end of the connection; `longest_s`: of those that have ended and
    those that go on. `followed`: requests that only a redirect leads to."""

    kind: str
    port: int
    attempts: int
    ended: int
    longest_s: float
    events: int
    ids_sum: str
    again: int
    forged: int
    followed: int


class Receiver:
    """One partner."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.answer = ANSWERS[kind]
        self.port = 0
        self.attempts = self.ended = self.again = self.forged = self.followed = 0
        self.longest_s = 0.0
        self.under_way: dict[Connection, float] = {}
        self._ids: set[int] = set()
        self._ids_sum = 0

    def note(self, message_id: bytes) -> None:
        """An id that came with a good signature."""
        number = int(message_id.replace(b"-", b""), 16)
        if number in self._ids:
            self.again += 1
            return
        self._ids.add(number)
        self._ids_sum += number

    def heard(self) -> Heard:
        """Up to now."""
        now_s = time.monotonic()
        longest_s = max([self.longest_s, *(now_s - begun for begun in self.under_way.values())])
        return Heard(
            self.kind, self.port, self.attempts, self.ended, longest_s,
            len(self._ids), f"{self._ids_sum:x}", self.again,
            self.forged, self.followed,
        )  # fmt: skip


class Connection(asyncio.Protocol):
    """Of one partner; one request after the other."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self.left = 0  # of a long answer
        self._read = b""
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=len(CHUNK))

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, found, body = self._read.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        if len(self._read) > REQUEST_BYTES_MAX:
            self.transport.abort()
        elif found and len(body) >= (int(length[1]) if length else 0):
            self._read = b""
            self._begin(head, body)

    def connection_lost(self, _error: Exception | None) -> None:
        self.end()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self.left:
            self.pour()

    def _begin(self, head: bytes, body: bytes) -> None:
        receiver = self.receiver
        receiver.attempts += 1
        receiver.followed += ELSEWHERE in head.partition(b"\r\n")[0]
        receiver.under_way[self] = time.monotonic()
        good = signed(head, body)
        receiver.forged += not good
        if good and (found := ID.search(head)):
            receiver.note(found[1])
        receiver.answer(self, good)

    def end(self) -> None:
        """The attempt is over."""
        begun_s = self.receiver.under_way.pop(self, None)
        if begun_s is not None:
            self.receiver.ended += 1
            self.receiver.longest_s = max(self.receiver.longest_s, time.monotonic() - begun_s)

    def say(self, answer: bytes) -> None:
        """All of it at once."""
        self.transport.write(answer)
        self.end()

    def drip(self, answer: bytes) -> None:
        """A byte, and the others later."""
        if self.transport.is_closing():
            return
        if not answer:
            self.end()
            return
        self.transport.write(answer[:1])
        asyncio.get_running_loop().call_later(DRIP_S, self.drip, answer[1:])

    def pour(self) -> None:
        """A part of a long answer, and the others as they are taken."""
        if self.transport.is_closing():
            return
        part = CHUNK[: self.left]
        self.left -= len(part)
        self.transport.write(part)
        if not self.left:
            self.end()
        elif not self._paused:
            asyncio.get_running_loop().call_later(CHUNK_S, self.pour)


def signed(head: bytes, body: bytes) -> bool:
    """Whether it bears a signature of our secret."""
    found = [pattern.search(head) for pattern in (ID, STAMP, SIGNATURE)]
    message_id, stamp, signatures = [one[1] if one else b"" for one in found]
    own = hmac.digest(KEY, b"%b.%b.%b" % (message_id, stamp, body), hashlib.sha256)
    return b"v1," + base64.b64encode(own) in signatures.split(b" ")


# ---- kinds ---------------------------------------------------------------------------------------


def healthy(one: Connection, good: bool) -> None:
    one.say(NO_CONTENT if good else REFUSED)


def hangs(_one: Connection, _good: bool) -> None:
    """Whoever asked hangs up some time."""


def fails(one: Connection, _good: bool) -> None:
    one.say(FAILED)


def resets(one: Connection, _good: bool) -> None:
    link: socket.socket = one.transport.get_extra_info("socket")
    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
    one.transport.abort()


def trickles(one: Connection, _good: bool) -> None:
    one.drip(SLOWLY)


def endless(one: Connection, _good: bool) -> None:
    one.left = GIGABYTE
    one.transport.write(FOR_EVER)
    one.pour()


def redirects(one: Connection, _good: bool) -> None:
    one.say(MOVED % (one.receiver.port, ELSEWHERE))


ANSWERS: dict[str, Callable[[Connection, bool], None]] = {
    one.__name__: one for one in (healthy, hangs, fails, resets, trickles, endless, redirects)
}


# ---- the process ---------------------------------------------------------------------------------


class Report(asyncio.Protocol):
    """Tells and hangs up."""

    def __init__(self, receivers: Sequence[Receiver]) -> None:
        self._receivers = receivers

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        link = cast(asyncio.Transport, transport)
        link.write(msgspec.json.encode([one.heard() for one in self._receivers]))
        link.close()


async def listen(receiver: Receiver) -> None:
    """On a free port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    await asyncio.get_running_loop().create_server(partial(Connection, receiver), sock=listener)
    receiver.port = listener.getsockname()[1]


async def serve(report_port: int, kinds: Sequence[str]) -> None:
    """Until whoever started it is gone."""
    receivers = [Receiver(kind) for kind in kinds]
    # First, or one of them might be given its port.
    reports = socket.create_server(("127.0.0.1", report_port))
    for one in receivers:
        await listen(one)
    loop = asyncio.get_running_loop()
    await loop.create_server(partial(Report, receivers), sock=reports)
    parent = os.getppid()
    while os.getppid() == parent:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(PARENT_LOOK_S)


def main(argv: Sequence[str]) -> int:
    """See the head of this module."""
    port, *kinds = argv
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(int(port), kinds))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
