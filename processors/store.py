"""The database: one engine per process, short transactions, and one error for "not now".

SQLite's writers begin with the write lock (BEGIN IMMEDIATE), so that nobody finds out at commit
that it read something old; PostgreSQL's lock the rows they change, in the order of their ids.
Readers see one snapshot from their first statement to their last. Every commit is synced, set
explicitly (synchronous=FULL, synchronous_commit=on): SQLite's WAL defaults to NORMAL, which may
show commits that a power loss takes back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from processors.sqlite import Onlooker, Sqlite, for_onlookers
from processors.verdict import Unfit, Verdict

BUSY_TIMEOUT_S = 5.0
CONNECTIONS_MAX = 8
LEAVE_S_MAX = 1.0
# One try meets another worker's commit, the next one sees it.
CONTENDED_MAX = 10
# How far an error is traced back: it, SQLAlchemy's around it, and those that it hid.
CONTEXTS_MAX = 8
# "rasher" in ASCII: nobody else who shares the server locks this number.
MIGRATION_LOCK = 0x726173686572

P = ParamSpec("P")
T = TypeVar("T")


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


class StoreContended(StoreBusy):
    """Others wrote the same at the same instant. Nothing is wrong, and the same will see theirs."""


class Kind(Protocol):
    """What differs between databases. `reading`, `writing`: execution options of connections."""

    reading: dict[str, Any]
    writing: dict[str, Any]

    def arguments(self, url: sa.URL, /) -> dict[str, Any]: ...
    def listen(self, engine: Engine) -> None: ...
    def verdict(self, error: BaseException) -> Verdict | None: ...


class Store:
    """The database of one process. Any thread may use it; at most `connections_max` at once."""

    def __init__(self, engine: Engine, kind: Kind) -> None:
        self.engine = engine
        self.kind = kind
        self._readers = engine.execution_options(**kind.reading)
        self._writers = engine.execution_options(**kind.writing)

    @classmethod
    def open(
        cls,
        url: str,
        *,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
        connections_max: int = CONNECTIONS_MAX,
        long: bool = False,
    ) -> Self:
        """Connects at the first use, not here. Raises StoreError for a URL that names no database.

        A lock is waited for `busy_timeout_s`, and so is one of the `connections_max` connections.
        `long`: a statement may take its time; else a server that is silent for long is given up.
        """
        parsed = _parse(url)
        if parsed.get_backend_name() != "postgresql":
            kind: Kind = Sqlite(busy_timeout_s)
        else:
            # Its driver takes 0.1 s to import, and SQLite's users never need it.
            from processors.postgres import SILENT_S_MAX, Postgres, driver_url  # noqa: PLC0415

            kind = Postgres(busy_timeout_s, None if long else SILENT_S_MAX)
            parsed = driver_url(parsed)
        return cls(_make_engine(parsed, kind, busy_timeout_s, connections_max), kind)

    @classmethod
    def onlooker(cls, url: str, patience_s: float) -> Self:
        """To be read from by one thread: nothing is changed, no file made. Locks, and a server that
        is silent, are waited for as long as `patience_s`. Raises StoreError, StoreUnavailable."""
        parsed = _parse(url)
        if parsed.get_backend_name() == "postgresql":
            from processors.postgres import Postgres, driver_url  # noqa: PLC0415

            kind: Kind = Postgres(patience_s, patience_s)
            return cls(_make_engine(driver_url(parsed), kind, patience_s, 1), kind)
        require_file(url)
        try:
            parsed = for_onlookers(parsed)
        except OSError as error:
            raise StoreUnavailable(f"the database can't be looked at: {error}") from error
        kind = Onlooker(patience_s)
        return cls(_make_engine(parsed, kind, patience_s, 1), kind)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A snapshot: all statements in here see the same commits. Raises StoreUnavailable."""
        with self._told_apart(), self._readers.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction, on SQLite one that holds the write lock from its begin; it commits when
        the block ends and rolls back when that raises. Raises StoreUnavailable, then nothing is
        known to have been committed, and StoreBroken, then nothing is known at all."""
        with self._told_apart(), self._writers.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def rehearsing(self) -> Iterator[Connection]:
        """A transaction that begins as a reader's and is rolled back in any case. Where there is
        one write lock, the first write takes it, or raises StoreBusy if somebody has it. Raises
        StoreUnavailable."""
        with self._told_apart(), self._readers.connect() as connection:
            transaction = connection.begin()
            try:
                if self.wal_path is not None:
                    connection.exec_driver_sql("PRAGMA busy_timeout=0")
                yield connection
            finally:
                transaction.rollback()

    def commit(
        self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What `work` returns, run in a transaction as `writing` has it, which is then committed;
        again at once when others wrote the same in the meantime. Raises as `writing` does."""
        for _ in range(CONTENDED_MAX - 1):
            try:
                with self.writing() as connection:
                    return work(connection, *args, **kwargs)
            except StoreContended:
                continue
        with self.writing() as connection:
            return work(connection, *args, **kwargs)

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
        with self._told_apart(), self.engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
            driver.execute("PRAGMA wal_checkpoint(PASSIVE)").close()

    @contextmanager
    def _told_apart(self) -> Iterator[None]:
        """Lets errors through as they are, except those that the database's state explains."""
        try:
            yield
        except Unfit as error:
            raise StoreError(f"{error} (--database)") from error
        except sa.exc.TimeoutError as error:
            raise StoreUnavailable(f"the database is not available: {error}") from error
        except (sa.exc.DBAPIError, self.engine.dialect.loaded_dbapi.Error) as error:
            cause = self._cause(error)
            refusal = _refusal(self.kind.verdict(cause), cause)
            if refusal is None:
                raise
            raise refusal from error

    def _cause(self, error: BaseException) -> BaseException:
        """The driver's error; the first one, when the rollback after it failed as well."""
        first = error.orig if isinstance(error, sa.exc.DBAPIError) and error.orig else error
        before: BaseException | None = error
        for _ in range(CONTEXTS_MAX):
            before = before and before.__context__
            if isinstance(before, self.engine.dialect.loaded_dbapi.Error):
                first = before
        return first

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
    store = Store.open(url, long=True)
    try:
        with store.writing() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
            upgrade(connection)
    finally:
        store.close()


def missing_file(url: str) -> Path | None:
    """SQLite's file if it is not there: to open it would make it, empty. Raises StoreError."""
    parsed = _parse(url)
    path = parsed.database if parsed.get_backend_name() == "sqlite" else None
    return Path(path) if path and not Path(path).exists() else None


def require_file(url: str) -> None:
    """Raises StoreUnavailable when SQLite's file is not there, StoreError."""
    missing = missing_file(url)
    if missing is not None:
        raise StoreUnavailable(f"there is no database: {missing} (--data-dir, --database)")


@contextmanager
def existing_store(url: str) -> Iterator[Store]:
    """For a command: makes no file, has one connection, closed at the end. Raises
    StoreUnavailable, StoreError."""
    require_file(url)
    store = Store.open(url, connections_max=1)
    try:
        yield store
    finally:
        store.close()


def leave_one_file(url: str) -> None:
    """For the last one who leaves: brings what SQLite keeps beside its file into it.

    Whoever closes last does that by himself; two who close at the same instant, or were killed,
    don't, and a copy of the file alone would miss the newest commits. Raises StoreUnavailable.
    """
    parsed = _parse(url)
    file = parsed.database if parsed.get_backend_name() == "sqlite" else None
    if file is None or not Path(f"{file}-wal").exists():
        return
    store = Store.open(url, busy_timeout_s=LEAVE_S_MAX, connections_max=1)
    try:
        with store.reading() as connection:  # without a statement SQLite would not open its WAL
            connection.execute(sa.text("SELECT 1 FROM orders LIMIT 1"))
    finally:
        store.close()


def _parse(url: str) -> sa.URL:
    """The parts of the URL, of which no error repeats any: one may be a password."""
    try:
        return sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        raise StoreError(
            "database URL of no database: it must be sqlite:///PATH or "
            "postgresql://USER:PASSWORD@HOST:PORT/NAME, each part percent-encoded (--database)"
        ) from None


def _make_engine(url: sa.URL, kind: Kind, busy_timeout_s: float, connections_max: int) -> Engine:
    try:
        engine = sa.create_engine(
            url,
            poolclass=sa.QueuePool,
            pool_size=connections_max,
            max_overflow=0,
            pool_timeout=busy_timeout_s,
            connect_args=kind.arguments(url),
        )
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ImportError) as error:
        raise StoreError(f"database URL of no database: {error} (--database)") from error
    kind.listen(engine)
    return engine


def _refusal(verdict: Verdict | None, cause: BaseException) -> Exception | None:
    text = f"the database is not available: {cause}"
    match verdict:
        case None:
            return None
        case Verdict.BROKEN:
            return StoreBroken(f"a write or sync of the database failed: {cause}")
        case Verdict.UNFIT:
            return StoreError(f"{cause} (--database)")
        case Verdict.UNAVAILABLE:
            return StoreUnavailable(text)
        case Verdict.BUSY:
            return StoreBusy(text)
        case Verdict.CONTENDED:
            return StoreContended(text)


def _make_folder(url: str) -> None:
    parsed = _parse(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        return
    folder = Path(parsed.database).absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnavailable(f"the database's folder can't be made: {error}") from error
