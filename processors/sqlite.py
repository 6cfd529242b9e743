"""How SQLite is opened and its transactions begun.

SQLite has one write lock. Its own way to wait for it (the busy timeout) sleeps ever longer, up
to 100 ms, so under load whoever waits longest is served last: beside a busy worker, adjusting a lot
took more than a second. Writers therefore ask again every millisecond or so. That costs a few
percent of a core while one waits, and everybody who waits has the same chance.
"""

from __future__ import annotations

import random
import re
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine

from processors import tables
from processors.verdict import Unfit, Verdict

WAL_BYTES_KEPT = 64 * 2**20
ASK_AGAIN_S = (0.0005, 0.002)
# Execution option of the connections that write.
WRITER = "rasher_writer"

# The driver looks for an adapter of each parameter that is neither number nor text, raises an
# AttributeError inside and drops it: 14 times an order, a tenth of its instructions. To find one
# that gives the value back costs less.
sqlite3.register_adapter(bytes, bytes)
sqlite3.register_adapter(type(None), {None: None}.get)

# What the database's state explains rather than the statement: waiting can help, blame can't.
UNAVAILABLE_CODES = frozenset(
    {
        sqlite3.SQLITE_INTERNAL,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_SCHEMA,
        sqlite3.SQLITE_NOTADB,
    }
)
# The system's own error for a write or a sync (a full disk has another code). After one of them the
# connection would go on acknowledging commits.
BROKEN_CODES = frozenset(
    {
        sqlite3.SQLITE_IOERR_WRITE,
        sqlite3.SQLITE_IOERR_FSYNC,
        sqlite3.SQLITE_IOERR_DIR_FSYNC,
        sqlite3.SQLITE_IOERR_TRUNCATE,
    }
)
NOT_MIGRATED = re.compile(
    rf"no such (table: (main\.)?({tables.ANY_TABLE})|column: ({tables.ANY_COLUMN}))$"
)


class Sqlite:
    """Event handlers for the connections of one engine. `busy_timeout_s`: for any lock."""

    def __init__(self, busy_timeout_s: float) -> None:
        self._busy_timeout_s = busy_timeout_s
        self.reading: dict[str, Any] = {}
        self.writing = {WRITER: True}

    def arguments(self, _url: sa.URL) -> dict[str, Any]:
        """For the driver's connect."""
        # isolation_level None: the driver leaves BEGIN to us (it would begin late, and deferred).
        return {
            "timeout": self._busy_timeout_s,
            "isolation_level": None,
            "check_same_thread": False,
        }

    def listen(self, engine: Engine) -> None:
        """Hooks itself into the engine."""
        self._engine = engine
        event.listen(engine, "connect", self.on_connect)
        event.listen(engine, "begin", self.on_begin)

    def verdict(self, error: BaseException) -> Verdict | None:
        """What an error of the driver means; None: the statement's own fault."""
        if not isinstance(error, sqlite3.Error):
            return None
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        if code in BROKEN_CODES:
            return Verdict.BROKEN
        primary = code & 0xFF  # extended codes keep it in the low byte
        if primary == sqlite3.SQLITE_READONLY:
            self._engine.dispose()  # a file that was opened for reading alone stays so
        if primary == sqlite3.SQLITE_BUSY:
            return Verdict.BUSY
        known = primary in UNAVAILABLE_CODES or NOT_MIGRATED.search(str(error))
        return Verdict.UNAVAILABLE if known else None

    def on_connect(self, connection: sqlite3.Connection, _record: object) -> None:
        """Sets what holds for every connection. Raises Unfit."""
        deadline = time.monotonic() + self._busy_timeout_s
        # The switch is made once in the life of a file. Of two that try at once, one is told that
        # it is locked, whatever the busy timeout.
        while pragma(connection, "journal_mode") != "wal":
            try:
                mode = pragma(connection, "journal_mode=WAL")
            except sqlite3.OperationalError as error:
                _wait_if_busy(error, deadline)
            else:
                if mode != "wal":
                    raise Unfit(f"SQLite can't use its WAL there, only {mode}")
        pragma(connection, "synchronous=FULL")
        pragma(connection, "foreign_keys=ON")
        pragma(connection, "wal_autocheckpoint=0")  # see Store.checkpoint
        pragma(connection, f"journal_size_limit={WAL_BYTES_KEPT}")

    def on_begin(self, connection: Connection) -> None:
        """Begins a snapshot, or for a writer a transaction that holds the write lock."""
        driver: Any = connection.connection.driver_connection
        if not connection.get_execution_options().get(WRITER):
            pragma(driver, f"busy_timeout={int(self._busy_timeout_s * 1000)}")
            driver.execute("BEGIN").close()
            return
        pragma(driver, "busy_timeout=0")
        deadline = time.monotonic() + self._busy_timeout_s
        while True:
            try:
                driver.execute("BEGIN IMMEDIATE").close()
                return
            except sqlite3.OperationalError as error:
                _wait_if_busy(error, deadline)


class Onlooker(Sqlite):
    """Sets nothing, for it changes nothing."""

    def on_connect(self, connection: sqlite3.Connection, _record: object) -> None:
        """A file that is opened for reading alone can't be switched to its WAL, and need not be."""


def for_onlookers(url: sa.URL) -> sa.URL:
    """So that neither the file nor what lies beside it is changed, or made. Raises OSError where
    that can't be.

    Without a WAL nobody has it open, and all is in the file. With one it is read through the index
    that others keep, or that a killed run has left; SQLite would make a missing one.
    """
    path = Path(str(url.database)).absolute()
    wal, index = (path.with_name(f"{path.name}-{suffix}") for suffix in ("wal", "shm"))
    if wal.exists() and not index.exists():
        raise FileNotFoundError(f"{wal} is there without {index.name}, which is made by a start")
    how = {"mode": "ro", "readonly_shm": "1"} if wal.exists() else {"immutable": "1"}
    return url.set(database=f"file:{quote(str(path))}", query={**how, "uri": "true"})


def pragma(connection: sqlite3.Connection, text: str) -> Any:
    """What a pragma answers, or None."""
    with closing(connection.execute(f"PRAGMA {text}")) as cursor:
        row = cursor.fetchone()
    return row and row[0]


def _wait_if_busy(error: sqlite3.OperationalError, deadline: float) -> None:
    if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
        raise error
    time.sleep(random.uniform(*ASK_AGAIN_S))
