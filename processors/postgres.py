"""How PostgreSQL is connected to, what is asked of its server, and what its errors say.

Writers run READ COMMITTED and lock the rows they change, readers see one snapshot. Whatever a
server's defaults are, each session waits for its commits to be on disk; a server that promises
that without doing it (fsync=off) is refused.

A network can swallow an answer while the connection looks alive, the answer to a COMMIT too. So
whoever waits gives up when the server has been silent for long enough; what became of the commit
is found out by the order ids, when the same work is tried again.
"""

from __future__ import annotations

import re
import select
import time
from collections.abc import Generator
from typing import Any, TypeVar

import psycopg
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Engine

from processors import tables
from processors.verdict import Unfit, Verdict

# A server that is there answers within milliseconds, or after a lock timeout, which is shorter.
SILENT_S_MAX = 10.0
CONNECT_S_MAX = 3
# A side that vanished is noticed by the other within half a minute, and its locks are free.
ALIVE_AFTER_S = 10
ALIVE_EVERY_S = 5
ALIVE_TRIES = 3
UNHEARD_MS_MAX = 15_000

# One round trip for all that holds for a session, and for what its server must be.
GREETING = """
SELECT current_setting('fsync'), current_setting('full_page_writes'),
    current_setting('server_encoding'),
    set_config('synchronous_commit', CASE current_setting('synchronous_commit')
        WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, false),
    set_config('lock_timeout', %s, false),
    set_config('tcp_keepalives_idle', %s, false),
    set_config('tcp_keepalives_interval', %s, false),
    set_config('tcp_keepalives_count', %s, false),
    set_config('tcp_user_timeout', %s, false)
"""
WANTED = {"fsync": "on", "full_page_writes": "on", "server_encoding": "UTF8"}

# libpq doesn't hand on the code of a refused connection, only its text. In another language than
# English it counts as a server that can't be reached: the text is logged, and tried again.
REFUSED = re.compile(
    r"authentication failed|(role|database) \".*\" does not exist|pg_hba\.conf|"
    r"no password supplied|not permitted to log in|permission denied for database"
)
NOT_MIGRATED = {
    "42P01": re.compile(rf'"({tables.ANY_TABLE})"'),
    "42703": re.compile(rf"column ({tables.ANY_COLUMN}) does not exist"),
}
UNIQUE_VIOLATION = "23505"
OF_ONE_WINNER = frozenset({"orders_pkey", "skus_sku_key", "lots_lot_id_key", "requests_pkey"})
# By code, else by the class of the code: what the server's state explains, not the statement.
VERDICTS = {
    "08": Verdict.UNAVAILABLE,  # the connection
    "25006": Verdict.UNAVAILABLE,  # read only: a standby
    "25P03": Verdict.UNAVAILABLE,  # ended by a limit for idle transactions
    "28": Verdict.UNFIT,  # no such role, wrong password
    "3D": Verdict.UNFIT,  # no such database
    "40001": Verdict.CONTENDED,
    "40P01": Verdict.CONTENDED,  # a deadlock, and this one was chosen to end it
    "42501": Verdict.UNAVAILABLE,  # a right was taken away: an operator's doing, no order's
    "53": Verdict.UNAVAILABLE,  # too many connections, disk full, no memory
    "55P03": Verdict.BUSY,
    "57": Verdict.UNAVAILABLE,  # cancelled, starting, stopping
    "58": Verdict.UNAVAILABLE,  # the system below it
    "58030": Verdict.BROKEN,
    "XX000": Verdict.UNAVAILABLE,
    "XX001": Verdict.BROKEN,
    "XX002": Verdict.BROKEN,
}

T = TypeVar("T")


class Patient(psycopg.Connection[Any]):
    """A connection that is given up when its server has been silent for `silent_s_max`."""

    silent_s_max: float | None = SILENT_S_MAX

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **kwargs: Any) -> T:
        """As psycopg's, through which everything waits that a connection does."""
        if self.silent_s_max is None:
            return super().wait(gen, *args, **kwargs)
        return super().wait(self._watched(gen, self.silent_s_max), *args, **kwargs)

    def _watched(self, gen: Generator[Any, Any, T], silent_s_max: float) -> Generator[Any, Any, T]:
        heard = time.monotonic()
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                now = time.monotonic()
                if ready:
                    heard = now
                elif now - heard > silent_s_max:
                    # Closed, not cancelled: whatever is sent from now on would wait as long.
                    self.pgconn.finish()
                    raise psycopg.OperationalError(f"no answer within {silent_s_max:g} s")
                wanted = gen.send(ready)
        except StopIteration as end:
            result: T = end.value
            return result


class Postgres:
    """Settings and event handlers for the connections of one engine.

    busy_timeout_s: for any lock; silent_s_max: None waits for an answer without end.
    """

    def __init__(self, busy_timeout_s: float, silent_s_max: float | None = SILENT_S_MAX) -> None:
        self._busy_timeout_s = busy_timeout_s
        self._silent_s_max = silent_s_max
        self.reading: dict[str, Any] = {
            "isolation_level": "REPEATABLE READ",
            "postgresql_readonly": True,
        }
        self.writing: dict[str, Any] = {"isolation_level": "READ COMMITTED"}

    def arguments(self, url: sa.URL) -> dict[str, Any]:
        """For the driver's connect; what the URL says itself stays as it is."""
        own = {
            "connect_timeout": CONNECT_S_MAX,
            "keepalives_idle": ALIVE_AFTER_S,
            "keepalives_interval": ALIVE_EVERY_S,
            "keepalives_count": ALIVE_TRIES,
            "tcp_user_timeout": UNHEARD_MS_MAX,
            "application_name": "rasher",
        }
        return {name: value for name, value in own.items() if name not in url.query}

    def listen(self, engine: Engine) -> None:
        """Hooks itself into the engine."""
        engine.dialect.use_native_hstore = False  # type: ignore[attr-defined]  # asks for its number
        event.listen(engine, "do_connect", self._connect)
        event.listen(engine, "connect", self._on_connect)
        event.listen(engine, "checkout", _on_checkout)

    def verdict(self, error: BaseException) -> Verdict | None:
        """What an error of the driver means; None: the statement's own fault."""
        if not isinstance(error, psycopg.Error):
            return None
        code = error.sqlstate
        if code is None:  # not from the server, so it is the way there
            return Verdict.UNAVAILABLE if isinstance(error, psycopg.OperationalError) else None
        if code == UNIQUE_VIOLATION and error.diag.constraint_name in OF_ONE_WINNER:
            return Verdict.CONTENDED
        if code in NOT_MIGRATED and NOT_MIGRATED[code].search(str(error)):
            return Verdict.UNAVAILABLE
        return VERDICTS.get(code) or VERDICTS.get(code[:2])

    def _connect(self, _dialect: object, _record: object, args: Any, given: Any) -> Patient:
        try:
            return Patient.connect(*args, **given)
        except psycopg.OperationalError as error:
            if REFUSED.search(str(error)):
                raise Unfit(str(error)) from error
            raise
        except psycopg.ProgrammingError as error:  # an option of the URL that nobody knows
            raise Unfit(str(error)) from error

    def _on_connect(self, connection: Patient, _record: object) -> None:
        # Set inside a transaction, the settings would go with its rollback.
        connection.autocommit = True
        lock_ms = max(1, int(self._busy_timeout_s * 1000))  # 0 would mean: without end
        values = (lock_ms, ALIVE_AFTER_S, ALIVE_EVERY_S, ALIVE_TRIES, UNHEARD_MS_MAX)
        row = connection.execute(GREETING, [str(value) for value in values]).fetchone()
        assert row is not None
        for (name, wanted), found in zip(WANTED.items(), row, strict=False):
            if found != wanted:
                raise Unfit(f"the server has {name} = {found}; Rasher needs {wanted}")
        connection.autocommit = False
        connection.silent_s_max = self._silent_s_max


def driver_url(url: sa.URL) -> sa.URL:
    """With the driver that Rasher brings, whatever SQLAlchemy's default is."""
    return url.set(drivername="postgresql+psycopg") if "+" not in url.drivername else url


def _on_checkout(connection: Patient, record: Any, _proxy: object) -> None:
    """Replaces what died while it was idle. That takes no round trip: nothing is asked, so there is
    nothing to be read, unless the server has said that this is the end, or the line is cut."""
    if not record.info.setdefault("used", False):
        record.info["used"] = True
        return
    poller = select.poll()
    poller.register(connection.fileno(), select.POLLIN)
    if poller.poll(0):
        raise sa.exc.InvalidatePoolError("the connection ended while it was idle")
