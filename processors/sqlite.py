"""How SQLite is opened and its transactions begun.

SQLite has one write lock. Its own way to wait for it (the busy timeout) sleeps ever longer, up
to 100 ms, so under load whoever waits longest is served last: beside a busy worker, adjusting a lot
took more than a second. Writers therefore ask again every millisecond or so. That costs a few
percent of a core while one waits, and everybody who waits has the same chance.
"""

from __future__ import annotations

import random
import sqlite3
import time
from contextlib import closing
from typing import Any

from sqlalchemy.engine import Connection

WAL_BYTES_KEPT = 64 * 2**20
ASK_AGAIN_S = (0.0005, 0.002)
# Execution option of the connections that write.
WRITER = "rasher_writer"


class NoWal(Exception):
    """The file system can't do what SQLite's WAL needs."""


class Sqlite:
    """Event handlers for the connections of one engine. `busy_timeout_s`: for any lock."""

    def __init__(self, busy_timeout_s: float) -> None:
        self._busy_timeout_s = busy_timeout_s

    def arguments(self) -> dict[str, Any]:
        """For the driver's connect."""
        # isolation_level None: the driver leaves BEGIN to us (it would begin late, and deferred).
        return {
            "timeout": self._busy_timeout_s,
            "isolation_level": None,
            "check_same_thread": False,
        }

    def on_connect(self, connection: sqlite3.Connection, _record: object) -> None:
        """Sets what holds for every connection. Raises NoWal."""
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
                    raise NoWal(f"SQLite can't use its WAL there, only {mode}")
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


def pragma(connection: sqlite3.Connection, text: str) -> Any:
    """What a pragma answers, or None."""
    with closing(connection.execute(f"PRAGMA {text}")) as cursor:
        row = cursor.fetchone()
    return row and row[0]


def _wait_if_busy(error: sqlite3.OperationalError, deadline: float) -> None:
    if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
        raise error
    time.sleep(random.uniform(*ASK_AGAIN_S))
