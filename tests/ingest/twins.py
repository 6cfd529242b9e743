"""Two fronts that differ in the lane alone, spoken to without a network: which reads, how split."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingest.accept import Acceptor
from ingest.app import make_app
from ingest.database import Database
from ingest.front import FrontServer
from ingest.keys import Keyring
from ingest.lookup import Earlier
from ingest.outcomes import Outcomes
from ingest.protocol import FrontProtocol
from processors.settings import HttpSettings, RingSettings, Settings
from processors.store import Store
from ringbuf import Journal, JournalRules, Reader, Ring, SegmentHeader, own_identity

BODY_BYTES_MAX = 2048
PATIENCE_S = 20
FULL_TIMEOUT_S = 5
DATE = (b"date", b"Thu, 01 Jan 1970 00:00:00 GMT")


class Clock(asyncio.SelectorEventLoop):
    """A loop whose time stands still until it is set on."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def time(self) -> float:
        return self.now_s

    async def pass_by(self, seconds: float) -> None:
        """So much later, when what was due by then has been done."""
        self.now_s += seconds
        for _ in range(5):
            await asyncio.sleep(0)


class Wire(asyncio.Transport):
    """The server's end of a connection that ends in this process."""

    def __init__(self, protocol: FrontProtocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.written = bytearray()
        self.unsent_bytes = 0  # as if the client had not taken them
        self.ours, theirs = socket.socketpair()
        theirs.close()
        self.paused = self.closing = self.lost = self.ended = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.ours if name == "socket" else default

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.ended or self.lost:
            raise RuntimeError("written behind the end")  # as uvloop
        self.written += data

    def write_eof(self) -> None:
        self.ended = True

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            if not self.unsent_bytes:
                asyncio.get_running_loop().call_soon(self.hang_up)

    def abort(self) -> None:
        self.closing = True
        asyncio.get_running_loop().call_soon(self.hang_up)

    def hang_up(self) -> None:
        self.closing = True
        if not self.lost:
            self.lost = True
            self.ours.close()
            self.protocol.connection_lost(None)


@asynccontextmanager
async def journaled(twin: Front, folder: Path) -> AsyncIterator[list[OSError]]:
    """With a journal behind it, of small segments; yields the errors that it met."""
    folder.mkdir(exist_ok=True)  # noqa: ASYNC240 - it takes no time
    errors: list[OSError] = []
    header = SegmentHeader(0, twin.ring.epoch, bytes(16), bytes(16), own_identity(), 0)
    rules = JournalRules(folder, header, segment_bytes=2**16, segments_max=64)
    twin.acceptor.journal = await Journal.open(rules, errors.append)
    try:
        yield errors
    finally:
        await twin.acceptor.journal.close()


async def never_stored(_key: bytes) -> Earlier | None:
    return None


@dataclass
class Front:
    """One front and its ring, and no process behind it."""

    ring: Ring
    reader: Reader
    acceptor: Acceptor
    server: FrontServer

    def connect(self) -> Wire:
        protocol = self.server._make_protocol()
        wire = Wire(protocol)
        protocol.connection_made(wire)
        return wire

    async def converse(self, reads: Iterable[bytes], turns: int = 0) -> bytes:
        """What comes back for these reads until the connection ends; between them, and while the
        connection is paused, the loop turns."""
        wire = self.connect()
        for data in reads:
            await self.turn(turns)
            await self.until(lambda: wire.closing or not wire.paused)
            if wire.closing:
                break
            wire.protocol.data_received(data)
        await self.until(lambda: wire.lost or wire.ended)
        wire.hang_up()  # as whoever reads the end would
        return bytes(wire.written)

    @staticmethod
    async def turn(times: int) -> None:
        for _ in range(times):
            await asyncio.sleep(0)

    async def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S  # the loop's time may stand still
        while not condition():
            assert time.monotonic() < deadline, "it never came true"
            await asyncio.sleep(0)

    def accepted(self) -> list[tuple[bytes, bytes]]:
        """Key and payload of what is in the ring."""
        return [(item.key, item.payload) for item in self.ring.snapshot().waiting]


@contextmanager
def front(
    folder: Path, lane: str, capacity: int = 16, keyring: Keyring | None = None
) -> Iterator[Front]:
    """Ids count from 1, dates stand still: two of them answer alike to the byte."""
    folder.mkdir(exist_ok=True)
    settings = Settings(
        data_dir=str(folder),
        database=f"sqlite:///{folder}/none.db",
        http=HttpSettings(max_body_bytes=BODY_BYTES_MAX, lane=lane),
        ring=RingSettings(capacity=capacity),
    )
    numbers = itertools.count(1)
    path = folder / f"{lane}.ring"
    with (
        socket.socket() as unused,
        Ring.create(path, capacity, slot_bytes=4096) as ring,
        ring.writer() as writer,
        ring.reader(0) as reader,
    ):
        acceptor = Acceptor(
            ring,
            writer,
            never_stored,
            FULL_TIMEOUT_S,
            new_id=lambda: next(numbers).to_bytes(16, "big"),
        )
        database = Database(Store.open(settings.database))
        outcomes = Outcomes(ring, database, acceptor.ending)
        app = make_app(settings, ring, acceptor, database, outcomes, keyring=keyring)
        server = FrontServer(app, acceptor, unused, settings, keyring)
        server.server_state.default_headers = [DATE]
        yield Front(ring, reader, acceptor, server)
    path.unlink()
