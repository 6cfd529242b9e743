"""PostgreSQL for tests: private servers of the Debian package's programs, ended by their pid.

Never a running service: each has its own folder and port. Root may not run one, so then it belongs
to an account without rights. `fsync` stays on, as Rasher demands; the folder lies in memory where
there is room, which makes it cheap.
"""

from __future__ import annotations

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, LiteralString

import psutil
import psycopg
import pytest

from tests.leaks import KEPT_CHILDREN
from tests.program import outlasting

INSTALL = "needs PostgreSQL's server: apt-get install postgresql"
PROGRAMS = "/usr/lib/postgresql"
# Below the ports that the kernel gives to outgoing connections: a stopped server's stays free.
PORTS = range(15_000, 32_000)
IN_MEMORY = Path("/dev/shm")
IN_MEMORY_BYTES_MIN = 4 * 2**30
PATIENCE_S = 30.0
OWNER = "rasher"
WITH_PASSWORD = "locked"
STARTS_MAX = 5
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
    "min_wal_size": "32MB",
    "jit": "off",
    # It would visit each of hundreds of databases once a minute.
    "autovacuum": "off",
}


class Postgres:
    """One server. `binaries`: the folder of initdb and postgres."""

    def __init__(self, binaries: Path, folder: Path, **settings: str) -> None:
        self.binaries = binaries
        self.folder = folder
        self.settings = {**SETTINGS, **settings}
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._made = 0
        self._account = _account()
        if self._account:
            shutil.chown(folder, *self._account)
        options = ["--no-sync", "--no-instructions", "--auth=trust", "--encoding=UTF8"]
        self._run("initdb", *options, "--locale=C", f"--username={OWNER}", f"--pgdata={self.data}")
        rules = self.data / "pg_hba.conf"
        # Everybody is trusted but the one who has a password.
        rules.write_text(f"host all {WITH_PASSWORD} all scram-sha-256\n{rules.read_text()}")

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    def url(self, database: str = "postgres", user: str = OWNER, port: int | None = None) -> str:
        return f"postgresql://{user}@127.0.0.1:{port or self.port}/{database}"

    def start(self) -> None:
        """Waits until it can be used. A second start keeps the port."""
        for _ in range(STARTS_MAX):
            self.port = self.port or _free_port()
            self._launch()
            if self._is_ready():
                return
            self.port = 0  # taken in the meantime
        raise AssertionError(f"PostgreSQL did not start: {self.log.read_text()}")

    def stop(self) -> None:
        """The fast shutdown: sessions are cut, what is committed is written. Twice is harmless."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL for each of its processes."""
        self._end(signal.SIGKILL)

    def database(self, template: str = "template1") -> str:
        """Makes a new one -> its name."""
        self._made += 1
        name = f"test{self._made}"
        with self.session() as session:
            # Before 15 there was no other way; since then it is the one that takes less.
            way = " STRATEGY file_copy" if session.info.server_version >= 150_000 else ""
            session.execute(f'CREATE DATABASE {name} TEMPLATE "{template}"{way}'.encode())
        return name

    @contextmanager
    def session(self, database: str = "postgres") -> Iterator[psycopg.Connection[Any]]:
        """As superuser; each statement is a transaction."""
        with psycopg.connect(self.url(database), autocommit=True, connect_timeout=5) as session:
            yield session

    def column(self, query: LiteralString, database: str = "postgres") -> list[Any]:
        """The first column of a query."""
        with self.session(database) as session:
            return [row[0] for row in session.execute(query)]

    def _launch(self) -> None:
        words = [str(self.binaries / "postgres"), "-D", str(self.data), "-p", str(self.port)]
        words += [word for each in self.settings.items() for word in ("-c", "=".join(each))]
        with self.log.open("ab") as log:
            # Ends with whoever started it, should that be killed.
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "INT", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,  # a Ctrl-C at the tests is not for it
                **self._as_account(),
            )
        KEPT_CHILDREN.add(self.process.pid)

    def _is_ready(self) -> bool:
        assert self.process is not None
        deadline = time.monotonic() + PATIENCE_S
        while self.process.poll() is None:
            with suppress(psycopg.OperationalError), self.session():
                return True
            assert time.monotonic() < deadline, self.log.read_text()
            threading.Event().wait(0.01)
        return False

    def _end(self, number: int) -> None:
        if self.process is None:
            return
        own: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            own = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(number)
        self.process.wait(PATIENCE_S)
        if number == signal.SIGKILL:
            for each in own:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
        # The next start refuses while one of them holds the old shared memory.
        assert not outlasting(own), "a process of PostgreSQL outlived its postmaster"
        KEPT_CHILDREN.discard(self.process.pid)
        self.process = None

    def _as_account(self) -> dict[str, Any]:
        if self._account is None:
            return {}
        user, group = self._account
        return {"user": user, "group": group, "extra_groups": []}

    def _run(self, program: str, *argv: str) -> None:
        done = subprocess.run(
            [self.binaries / program, *argv],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            **self._as_account(),
        )
        assert done.returncode == 0, done.stderr


@contextmanager
def private_server(**settings: str) -> Iterator[Postgres]:
    """A server of one's own, running; skips the test where PostgreSQL is not installed."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip(INSTALL)
    folder = Path(tempfile.mkdtemp(prefix="rasher-postgres-", dir=_place()))
    server = None
    try:
        server = Postgres(binaries, folder, **settings)
        server.start()
        yield server
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(folder)


def find_binaries() -> Path | None:
    """The newest version's, as Debian lays them out, else what the PATH has."""
    found = [path.parent for path in Path(PROGRAMS).glob("*/bin/postgres")]
    if found:
        return max(found, key=lambda path: float(path.parent.name))
    on_path = shutil.which("postgres")
    return Path(on_path).resolve().parent if on_path else None


def _place() -> Path:
    room = shutil.disk_usage(IN_MEMORY).free if IN_MEMORY.is_dir() else 0
    return IN_MEMORY if room >= IN_MEMORY_BYTES_MIN else Path(tempfile.gettempdir())


def _account() -> tuple[int, int] | None:
    """Whose the server shall be, when it can't be ours."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            account = pwd.getpwnam(name)
            return account.pw_uid, account.pw_gid
    raise AssertionError("root can't run PostgreSQL, and there is no account postgres or nobody")


def _free_port() -> int:
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
