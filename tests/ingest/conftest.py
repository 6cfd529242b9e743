"""A front in this process: real ring, real database, real sockets, uvloop."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from ingest.accept import Acceptor
from ingest.app import make_acceptor, make_app
from ingest.database import Database
from ingest.front import FrontServer
from ingest.keys import Keyring
from ingest.outcomes import Outcomes
from processors.journal import journal_rules, make_journal_dir
from processors.keys import load_keys
from processors.pipeline import Processor, fefo
from processors.settings import HttpSettings, JournalSettings, RingSettings, Settings
from processors.stop import Stop
from processors.store import Store
from processors.tally import OWNER, Tally
from processors.worker import BaconWorker, Rules
from ringbuf import Journal, Reader, Ring, Writer
from tests.databases import make_database

PATIENCE_S = 20.0
# Every client of httpx would load all authorities that the machine knows.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


@dataclass
class Raw:
    """A connection spoken to byte by byte."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer: status, headers in lower case, body."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
        first, *lines = head.decode().strip().split("\r\n")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}
        body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return int(first.split()[1]), headers, body

    async def closed(self) -> bool:
        """Whether the other side ends the connection without another byte."""
        try:
            return await asyncio.wait_for(self.reader.read(1), PATIENCE_S) == b""
        except ConnectionResetError:
            return True

    async def rest(self) -> bytes:
        """All that comes before the other side ends the connection."""
        return await asyncio.wait_for(self.reader.read(), PATIENCE_S)

    async def hang_up(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


@dataclass
class Service:
    """A running front and everything behind it but the workers."""

    settings: Settings
    ring: Ring
    writer: Writer
    reader: Reader
    store: Store
    database: Database
    server: FrontServer
    port: int
    client: httpx.AsyncClient
    acceptor: Acceptor
    errors: list[OSError]  # of the journal
    outcomes: Outcomes
    raws: list[Raw] = field(default_factory=list)

    async def raw(self) -> Raw:
        connection = Raw(*await asyncio.open_connection("127.0.0.1", self.port))
        self.raws.append(connection)
        return connection

    def posting(self, body: bytes, path: str = "/orders", headers: str = "") -> bytes:
        """The bytes of a POST of JSON."""
        return (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n{headers}\r\n"
        ).encode() + body

    async def until(self, condition: Callable[[], object]) -> None:
        """Let the loop run until the condition holds."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110 - nothing here tells when it does
                await asyncio.sleep(0)

    async def parked(self, count: int) -> None:
        """Until that many orders wait for room."""
        await self.until(lambda: self.writer.parked == count)

    def work_off(self, processor: Processor | None = None) -> None:
        """What a worker does with all that is in the ring."""
        self.ring.close()
        with Stop() as stop:
            tally = Tally(self.ring.page("reader", self.reader.index))
            worker = BaconWorker(
                self.ring, self.store, processor or fefo(), Rules(), stop, tally=tally
            )
            worker.run(self.reader)
        self.ring.reopen()

    async def post(self, content: bytes, path: str = "/orders") -> httpx.Response:
        return await self.client.post(
            path, content=content, headers={"content-type": "application/json"}
        )


Start = Callable[..., Awaitable[Service]]


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Service]:
    folder, url, ring = Path(settings.data_dir), settings.database, settings.ring
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    port = listener.getsockname()[1]
    store = Store.open(url, busy_timeout_s=0.2)
    database = Database(store)
    ready = asyncio.Event()
    with (
        Ring.create(folder / "ring", ring.capacity, ring.slot_bytes, readers=1) as shared,
        shared.writer() as writer,
        shared.reader(0) as reader,
    ):
        tally = Tally(shared.page("writer", writer.index))
        tally.page[OWNER] = 1
        errors: list[OSError] = []
        journal = None
        if settings.durability == "disk":
            rules = journal_rules(settings, shared.epoch, bytes(16))
            make_journal_dir(settings)
            journal = await Journal.open(rules, errors.append)
        acceptor = make_acceptor(settings, shared, writer, database, tally, journal=journal)
        outcomes = Outcomes(shared, database, acceptor.ending)
        keys = load_keys(settings)
        keyring = None if keys is None else Keyring(keys)
        app = make_app(settings, shared, acceptor, database, outcomes, keyring=keyring)
        server = FrontServer(app, acceptor, listener, settings, keyring)
        serving = asyncio.create_task(server.run_until_drained(ready.set))
        await ready.wait()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S, limits=limits,
            trust_env=False, verify=NO_TLS,
        ) as client:  # fmt: skip
            service = Service(
                settings, shared, writer, reader, store, database, server, port, client,
                acceptor, errors, outcomes,
            )  # fmt: skip
            yield service
            for raw in service.raws:
                raw.writer.close()
        server.drain()
        await asyncio.wait_for(serving, PATIENCE_S)
        if journal is not None:
            await journal.close()
        await outcomes.close()
        await database.close()
    store.close()


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts fronts: start(capacity=..., full_timeout_s=..., max_connections=..., ...)."""
    async with AsyncExitStack() as stack:

        async def starting(
            drain_timeout_s: float = 5.0,
            durability: str = "memory",
            database: str | None = None,
            **given: Any,
        ) -> Service:
            http = {name: given.pop(name) for name in HTTP_NAMES & given.keys()}
            settings = Settings(
                data_dir=str(tmp_path),
                database=database or make_database(tmp_path / "rasher.db"),
                durability=durability,
                ring=RingSettings(**given),
                http=HttpSettings(**http),
                graceful_timeout_s=drain_timeout_s,
                journal=JournalSettings(segment_bytes=2**17),
            )
            return await stack.enter_async_context(running(settings))

        yield starting


HTTP_NAMES = set(HttpSettings.__struct_fields__)


@pytest.fixture
async def service(start: Start) -> Service:
    return await start()
