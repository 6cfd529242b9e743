"""The front's process: connections in, the application behind them.

uvicorn's server with its own ways in and out: connections are accepted one by one while there is
room under --max-connections (the others wait in the listen backlog), TERM means drain, and USR1
means that another front has taken over.

    accepting --TERM--> draining (no new connection, idle ones closed, requests finish) --> exit 0
    accepting --USR1--> retiring (no new connection, requests are answered as ever, each connection
                        closes with its next answer or when it was idle as long as ever) --> exit 0
    retiring  --TERM--> draining

Whoever uses a connection sees of a retiring front what he sees of any: an answer that announces the
close, or the end of a connection that was idle for KEEP_ALIVE_S.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from email.utils import formatdate
from functools import partial
from typing import Any

import uvicorn
import uvloop
from uvicorn.server import ServerState

from ingest import exchange
from ingest.accept import Acceptor
from ingest.app import make_acceptor, make_app
from ingest.claims import Claims
from ingest.database import Database
from ingest.keys import Keyring
from ingest.lane import LaneProtocol
from ingest.memo import Memo
from ingest.outcomes import Outcomes
from ingest.protocol import FrontProtocol
from processors.child import RETIRE, Child, enter
from processors.datadir import pid_path
from processors.doubt import give_up
from processors.journal import journal_rules, make_journal_dir
from processors.settings import HttpSettings, Settings, SettingsError
from processors.store import Store
from processors.tally import SYNC_US, Tally
from processors.tls import server_context
from ringbuf import Journal

DATE_REFRESH_S = 1.0
KEEP_ALIVE_S = 5
# Like that of a head, which comes after it.
HANDSHAKE_S_MAX = 10.0
# How long accepting pauses when the machine or the process has no descriptor or memory left.
ACCEPT_PAUSE_S = 0.1
# How long requests without a client may take to notice it: one wait for the database's lock.
LAST_WORDS_S = 10.0
EXIT_SETTINGS = 2
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

logger = logging.getLogger(__name__)


class FrontState(ServerState):
    """uvicorn's shared state, and an event for every connection that ends."""

    def __init__(self) -> None:
        super().__init__()
        self.freed = asyncio.Event()
        self.retiring = False


class FrontServer(uvicorn.Server):
    """Serves connections of one listening socket (which it closes) until `drain` or `retire`.

    `acceptor` and `keyring` are the application's, for the lane. Raises SettingsError for a
    certificate that can't be used.
    """

    def __init__(
        self,
        app: Any,
        acceptor: Acceptor,
        listener: socket.socket,
        settings: Settings,
        keyring: Keyring | None = None,
    ) -> None:
        super().__init__(_config(app))
        self.config.load()
        self.server_state: FrontState = FrontState()
        self._acceptor = acceptor
        self._listener = listener
        self._http = settings.http
        self._keyring = keyring
        self._tls = tls_options(settings.http)
        self._memo = Memo()
        self._drain_timeout_s = settings.graceful_timeout_s
        self._end = asyncio.Event()
        self._draining = False
        self._connecting: set[asyncio.Task[None]] = set()

    def drain(self) -> None:
        """Begin to end; `run_until_drained` returns when the last answer is sent."""
        self._acceptor.ending.announce(self._drain_timeout_s)
        self._draining = True
        self._end.set()
        self.server_state.freed.set()

    def retire(self) -> None:
        """Begin to end, with another front at work: whoever has a connection here notices nothing
        but its close, which is announced by an answer or comes when it was idle as long as ever."""
        self.server_state.retiring = True
        self._acceptor.ending.announce(self._drain_timeout_s)
        for connection in list(self.server_state.connections):
            assert isinstance(connection, FrontProtocol)
            connection.retire()
        self._end.set()

    async def run_until_drained(self, ready: Callable[[], None]) -> None:
        """Serve; `ready` is called once connections are accepted."""
        self._listener.setblocking(False)
        self._refresh_date()
        accepting = asyncio.create_task(self._accept_connections())
        asyncio.get_running_loop().call_soon(ready)
        ends = asyncio.create_task(self._end.wait())
        await asyncio.wait({accepting, ends}, return_when=asyncio.FIRST_COMPLETED)
        for task in (accepting, ends):
            task.cancel()
        results = await asyncio.gather(accepting, ends, return_exceptions=True)
        self._listener.close()
        await self._finish_requests()
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _accept_connections(self) -> None:
        state = self.server_state
        while True:
            while len(state.connections) + len(self._connecting) >= self._http.max_connections:
                await self._until_freed()
            await self._somebody_waits()
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                continue  # another front was faster
            except OSError as error:
                await _survive(error)
                continue
            connection.setblocking(False)
            connecting = asyncio.create_task(self._connect(connection))
            self._connecting.add(connecting)
            connecting.add_done_callback(self._connected)

    async def _somebody_waits(self) -> None:
        # Not sock_accept: cancelled at the wrong moment it would lose an accepted connection.
        loop = asyncio.get_running_loop()
        readable = loop.create_future()
        loop.add_reader(self._listener, _resolve, readable)
        try:
            await readable
        finally:
            loop.remove_reader(self._listener)

    async def _connect(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            # With TLS until the handshake is over; all the while it counts as a connection.
            await loop.connect_accepted_socket(self._make_protocol, connection, **self._tls)
        except OSError as error:
            logger.debug("a connection ended before it began: %s", error)
            connection.close()

    def _connected(self, connecting: asyncio.Task[None]) -> None:
        self._connecting.discard(connecting)
        self.server_state.freed.set()

    def _make_protocol(self) -> FrontProtocol:
        config, state = self.config, self.server_state
        if self._http.lane == "off":
            return FrontProtocol(config=config, server_state=state, app_state={})
        return LaneProtocol(
            config=config,
            server_state=state,
            app_state={},
            acceptor=self._acceptor,
            body_bytes_max=self._http.max_body_bytes,
            memo=self._memo,
            keyring=self._keyring,
        )

    def _refresh_date(self) -> None:
        loop = asyncio.get_running_loop()
        self.server_state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        loop.call_later(DATE_REFRESH_S, self._refresh_date)

    async def _finish_requests(self) -> None:
        state = self.server_state
        await self._finish_connecting()
        try:
            async with asyncio.timeout(self._drain_timeout_s):
                while state.connections and not self._draining:
                    await self._until_freed()
                for connection in list(state.connections):
                    connection.shutdown()
                while state.connections:
                    await self._until_freed()
        except TimeoutError:
            logger.warning(
                "%d requests unfinished after %g s (--graceful-timeout)",
                len(state.connections),
                self._drain_timeout_s,
            )
        for connection in list(state.connections):
            connection.transport.abort()
        if state.tasks:
            await asyncio.wait(set(state.tasks), timeout=LAST_WORDS_S)

    async def _finish_connecting(self) -> None:
        """Retiring, handshakes have their time; draining ends them, for no request has come yet."""
        if not self._tls:
            await asyncio.gather(*self._connecting)
            return
        while self._connecting and not self._draining:
            await self._until_freed()
        for connecting in self._connecting:
            connecting.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)

    async def _until_freed(self) -> None:
        self.server_state.freed.clear()
        await self.server_state.freed.wait()


def tls_options(http: HttpSettings) -> dict[str, Any]:
    """Of `connect_accepted_socket`; nothing without a certificate. Raises SettingsError."""
    context = server_context(http)
    if context is None:
        return {}
    return {
        "ssl": context,
        "ssl_handshake_timeout": HANDSHAKE_S_MAX,
        "ssl_shutdown_timeout": exchange.DROPPING_S_MAX,
    }


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _survive(error: OSError) -> None:
    """Go on after a failed accept; a connection that was reset in the backlog is nothing."""
    if error.errno in EXHAUSTED:
        logger.warning("no connection accepted for %g s: %s", ACCEPT_PAUSE_S, error)
        await asyncio.sleep(ACCEPT_PAUSE_S)
    elif error.errno in (errno.EBADF, errno.EINVAL, errno.ENOTSOCK):
        raise error


def _config(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=FrontProtocol,
        ws="none",
        loop="none",
        lifespan="off",
        timeout_keep_alive=KEEP_ALIVE_S,
        interface="asgi3",
        log_config=None,
        log_level="error",  # what clients do wrong is no event of ours
        access_log=False,
        proxy_headers=False,
        server_header=False,
    )


async def serve(child: Child) -> None:
    """The life of a front."""
    settings, listen_fd = child.launch.settings, child.launch.listen_fd
    assert listen_fd is not None
    loop = asyncio.get_running_loop()
    child.watch_parent(loop)
    give_up_here = partial(give_up, child.ring)
    store = Store.open(settings.database)
    database = Database(store, on_broken=give_up_here)
    with child.ring.writer() as writer:
        tally = child.tally("writer", writer.index)
        journal = await open_journal(child, tally)
        claims = Claims.open(pid_path(settings))
        acceptor = make_acceptor(
            settings, child.ring, writer, database, tally, journal=journal, claims=claims
        )
        hold_back(child, acceptor)
        outcomes = Outcomes(child.ring, database, acceptor.ending)
        keys = child.launch.keys
        keyring = None if keys is None else Keyring(keys)
        app = make_app(settings, child.ring, acceptor, database, outcomes, keyring=keyring)
        server = FrontServer(app, acceptor, socket.socket(fileno=listen_fd), settings, keyring)
        loop.add_signal_handler(signal.SIGTERM, server.drain)
        loop.add_signal_handler(RETIRE, server.retire)
        await server.run_until_drained(child.ready)
        if journal is not None:
            await journal.close()
    claims.close()
    await outcomes.close()
    await database.close()
    store.close()


async def open_journal(child: Child, tally: Tally) -> Journal | None:
    """This front's, if `--durability` wants one. Without room for it, it goes on trying."""
    launch = child.launch
    if launch.settings.durability == "memory":
        return None
    make_journal_dir(launch.settings)
    rules = journal_rules(launch.settings, child.ring.epoch, bytes.fromhex(launch.database))
    journal = await Journal.open(rules, partial(give_up, child.ring))
    journal.on_sync = lambda sync_ns, _: tally.observe(SYNC_US, sync_ns // 1000)
    return journal


def hold_back(child: Child, acceptor: Acceptor) -> None:
    """Takes nothing in until the supervisor has put back what the journal holds."""
    gate_fd = child.launch.gate_fd
    if gate_fd is None:
        return
    acceptor.recovering = True
    loop = asyncio.get_running_loop()

    def opened() -> None:
        loop.remove_reader(gate_fd)
        os.close(gate_fd)
        acceptor.recovering = False

    loop.add_reader(gate_fd, opened)


def main(argv: Sequence[str]) -> int:
    """The process; 0 after a drain, 2 for a certificate that can't be used."""
    child = enter(argv)
    try:
        server_context(child.launch.settings.http)  # before anything is opened
    except SettingsError as error:  # at HUP; at the start it was looked at
        logger.error("%s", error)
        return EXIT_SETTINGS
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(child))
    child.ring.detach()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
