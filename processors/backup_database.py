"""Copies the database for a backup, from one snapshot, beside whoever writes.

SQLite: its online backup, inside a read transaction of ours. Without that, each commit of others
would make it begin anew, under load for ever; with it the pages come from one snapshot of the WAL,
and writers wait for nothing. The WAL can't be begun anew meanwhile, so it grows by what is
written. VACUUM INTO does the same in one statement, reads and sorts every index, tells no progress
and takes a core; the copy in steps leaves pauses, in which the disk is the workers' again.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa

STEP_PAGES = 256
# Of the time: a step is followed by a pause of the same length, at most so long.
PAUSE_S_MAX = 0.1
BUSY_TIMEOUT_S = 5.0
SQLITE_NAME, DUMP_NAME = "rasher.db", "rasher.dump"
NO_PG_DUMP = "pg_dump is not installed (Debian: apt-get install postgresql-client)"

Told = Callable[[str, int, int], None]


class CopyError(OSError):
    """The database can't be copied, for the reason that the text gives."""


def copy_database(url: str, into: Path, told: Told) -> None:
    """Into that directory, synced; the directory is not. Raises OSError, sqlite3.Error."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite":
        assert parsed.database is not None
        copy_sqlite(Path(parsed.database), into / SQLITE_NAME, told)
    else:
        dump_postgres(parsed, into / DUMP_NAME, told)


def copy_sqlite(source: Path, target: Path, told: Told) -> None:
    """`told` hears of pages. Raises OSError, sqlite3.Error."""
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    fd = os.open(target, os.O_RDWR | os.O_CLOEXEC)
    try:
        with (
            closing(_connected(source)) as there,
            closing(sqlite3.connect(target, isolation_level=None)) as here,
        ):
            for pragma in ("journal_mode=OFF", "synchronous=OFF"):  # synced below, or removed
                here.execute(f"PRAGMA {pragma}").close()
            there.execute("BEGIN").close()
            there.execute("SELECT 1 FROM meta").close()  # only a read makes it a snapshot
            there.backup(here, pages=STEP_PAGES, progress=_paused(fd, told))
        os.fsync(fd)
    finally:
        os.close(fd)


def _connected(path: Path) -> sqlite3.Connection:
    # mode=rw: opened otherwise, a file that is gone would be made anew, empty.
    uri = f"file:{quote(str(path))}?mode=rw"
    return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_TIMEOUT_S)


def _paused(fd: int, told: Told) -> Callable[[int, int, int], None]:
    """Syncs after every step: all at once, it would keep the disk from the workers' commits."""
    begun = time.monotonic()

    def after_step(_status: int, remaining: int, total: int) -> None:
        nonlocal begun
        os.fdatasync(fd)
        told("database", total - remaining, total)
        if remaining:
            time.sleep(min(PAUSE_S_MAX, time.monotonic() - begun))
        begun = time.monotonic()

    return after_step


def dump_postgres(url: sa.URL, target: Path, told: Told) -> None:
    """pg_dump, which reads one snapshot and syncs what it writes. Raises CopyError."""
    program = shutil.which("pg_dump")
    if program is None:
        raise CopyError(NO_PG_DUMP)
    told("database", 0, 0)
    where = sa.URL.create(
        "postgresql", url.username, None, url.host, url.port, url.database, url.query
    )
    words = ["--format=custom", "--no-password", f"--file={target}", "--dbname"]
    # The password not as an argument: those are everybody's to see.
    secret = {} if url.password is None else {"PGPASSWORD": str(url.password)}
    done = subprocess.run(  # noqa: S603 - no shell
        [program, *words, where.render_as_string()],
        env={**os.environ, **secret},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return
    reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
    if "server version mismatch" in reason:
        reason += (
            "; a pg_dump at least as new as the server is needed "
            "(Debian: postgresql-client-NN of the server's version NN)"
        )
    raise CopyError(f"{program}: {reason}")
