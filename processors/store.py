"""The database: one engine per process, short transactions, and one error for "not now".

Writers begin with the write lock (BEGIN IMMEDIATE), so that nobody finds out at commit that it read
something old; readers see one snapshot from their first statement to their last. Every commit is
synced (synchronous=FULL, set explicitly): WAL's default of NORMAL may show commits that a power
loss takes back.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine

from processors import tables
from processors.sqlite import WRITER, NoWal, Sqlite

BUSY_TIMEOUT_S = 5.0
CONNECTIONS_MAX = 8
LEAVE_S_MAX = 1.0

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
NOT_MIGRATED = re.compile(rf"no such table: (main\.)?({'|'.join(tables.metadata.tables)})$")


class StoreError(Exception):
    """The database can't be used as it is configured; waiting will not help."""


class StoreBroken(StoreError):
    """A write or a sync of the database has failed: what was committed before may not be on disk,
    and trying again would hide it. Whoever meets it ends, and nothing is promised any more."""


class StoreUnavailable(Exception):
    """The database can't be reached, or stays locked, full or broken: nothing was committed that
    is known of. The same work can be tried again later; a commit is recognised by its order ids."""


class StoreBusy(StoreUnavailable):
    """It is there, and others have what this needed for longer than the busy timeout: that was the
    pause, so the same can be tried again at once."""


class Store:
    """The database of one process. Any thread may use it; at most `connections_max` at once."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._writers = engine.execution_options(**{WRITER: True})

    @classmethod
    def open(
        cls,
        url: str,
        *,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
        connections_max: int = CONNECTIONS_MAX,
    ) -> Self:
        """Connects at the first use, not here. Raises StoreError for a URL that names no database.

        A lock is waited for `busy_timeout_s`, and so is one of the `connections_max` connections.
        """
        return cls(_make_engine(url, busy_timeout_s, connections_max))

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A snapshot: all statements in here see the same commits. Raises StoreUnavailable."""
        with _told_apart(self.engine), self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that holds the write lock from its begin; it commits when the block ends
        and rolls back when that raises. Raises StoreUnavailable, then nothing is known to have
        been committed, and StoreBroken, then nothing is known at all."""
        with _told_apart(self.engine), self._writers.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def rehearsing(self) -> Iterator[Connection]:
        """A transaction that begins as a reader's and is rolled back in any case. Where there is
        one write lock, the first write takes it, or raises StoreBusy if somebody has it. Raises
        StoreUnavailable."""
        with _told_apart(self.engine), self.engine.connect() as connection:
            transaction = connection.begin()
            try:
                if self.wal_path is not None:
                    connection.exec_driver_sql("PRAGMA busy_timeout=0")
                yield connection
            finally:
                transaction.rollback()

    @property
    def wal_path(self) -> str | None:
        """Where SQLite keeps what is not in the database's file yet."""
        url = self.engine.url
        return f"{url.database}-wal" if url.get_backend_name() == "sqlite" else None

    def checkpoint(self) -> None:
        """Brings what the WAL holds into the database's file, as far as no reader is in the way.

        Not SQLite's own, which comes with some commit: that one hides the error of a sync. Raises
        as `writing` does.
        """
        if self.wal_path is None:
            return
        with _told_apart(self.engine), self.engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
            driver.execute("PRAGMA wal_checkpoint(PASSIVE)").close()

    def close(self) -> None:
        """Ends every connection that is not in use; twice is harmless."""
        self.engine.dispose()


def migrate(url: str) -> None:
    """Brings the schema to this version's, making the SQLite file and its folder if needed.

    All in one transaction: killed, nothing happened; done by two at once, the second finds it
    done. Raises StoreUnavailable, and StoreError for a database that a newer Rasher has migrated.
    """
    # Alembic takes 0.1 s to import and fronts and workers never need it.
    from processors.migrate import upgrade  # noqa: PLC0415

    _make_folder(url)
    store = Store.open(url)
    try:
        with store.writing() as connection:
            upgrade(connection)
    finally:
        store.close()


def leave_one_file(url: str) -> None:
    """For the last one who leaves: brings what SQLite keeps beside its file into it.

    Whoever closes last does that by himself; two who close at the same instant, or were killed,
    don't, and a copy of the file alone would miss the newest commits. Raises StoreUnavailable.
    """
    file = sa.make_url(url).database
    if file is None or not Path(f"{file}-wal").exists():
        return
    store = Store.open(url, busy_timeout_s=LEAVE_S_MAX, connections_max=1)
    try:
        with store.reading() as connection:  # without a statement SQLite would not open its WAL
            connection.execute(sa.text("SELECT 1 FROM orders LIMIT 1"))
    finally:
        store.close()


def _make_engine(url: str, busy_timeout_s: float, connections_max: int) -> Engine:
    try:
        parsed = sa.make_url(url)
        sqlite = Sqlite(busy_timeout_s) if parsed.get_backend_name() == "sqlite" else None
        engine = sa.create_engine(
            parsed,
            poolclass=sa.QueuePool,
            pool_size=connections_max,
            max_overflow=0,
            pool_timeout=busy_timeout_s,
            connect_args=sqlite.arguments() if sqlite else {},
        )
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ImportError) as error:
        raise StoreError(f"database URL of no database: {error} (--database)") from error
    if sqlite is not None:
        event.listen(engine, "connect", sqlite.on_connect)
        event.listen(engine, "begin", sqlite.on_begin)
    return engine


@contextmanager
def _told_apart(engine: Engine) -> Iterator[None]:
    """Lets errors through as they are, except those that StoreUnavailable stands for."""
    try:
        yield
    except NoWal as error:
        raise StoreError(f"{error} (--database)") from error
    except (sa.exc.TimeoutError, sa.exc.DBAPIError, engine.dialect.loaded_dbapi.Error) as error:
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        if isinstance(cause, sqlite3.Error) and _code(cause) in BROKEN_CODES:
            raise StoreBroken(f"a write or sync of the database failed: {cause}") from error
        if isinstance(cause, sqlite3.Error) and _code(cause) & 0xFF == sqlite3.SQLITE_READONLY:
            engine.dispose()  # a file that was opened for reading alone stays so
        if isinstance(error, sa.exc.TimeoutError) or _is_unavailable(cause):
            refusal = StoreBusy if _is_locked(cause) else StoreUnavailable
            raise refusal(f"the database is not available: {cause}") from error
        raise


def _is_unavailable(error: BaseException | None) -> bool:
    if not isinstance(error, sqlite3.Error):
        return False
    # Extended codes keep the primary one in the low byte.
    code = _code(error) & 0xFF
    return code in UNAVAILABLE_CODES or NOT_MIGRATED.search(str(error)) is not None


def _is_locked(error: BaseException | None) -> bool:
    return isinstance(error, sqlite3.Error) and _code(error) & 0xFF == sqlite3.SQLITE_BUSY


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)


def _make_folder(url: str) -> None:
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError as error:
        raise StoreError(f"database URL of no database: {error} (--database)") from error
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        return
    folder = Path(parsed.database).absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnavailable(f"the database's folder can't be made: {error}") from error
