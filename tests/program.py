"""The whole program as its users have it: started, listened to, called, signalled."""

from __future__ import annotations

import http.client
import json
import os
import re
import select
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import IO, Any

import psutil
import psycopg

from ringbuf import Ring

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 30.0
POLL_S = 0.01


EXPIRY = "2126-01-01T00:00:00Z"
JSON = {"content-type": "application/json"}


def clean_environ() -> dict[str, str]:
    """The environment without settings: what a developer exported must not steer a test."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("RASHER_", "STAND_IN_"))}


def has_ended(pidfd: int, patience_s: float = PATIENCE_S) -> bool:
    """Waits for the kernel to say so, which it does before that process is reaped."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(max(0.0, patience_s) * 1000))


def outlasting(
    processes: Iterable[psutil.Process], patience_s: float = PATIENCE_S
) -> list[psutil.Process]:
    """Waits for all to end -> those that have not.

    Not for their being reaped: that is done for an orphan by whoever is process 1, at its leisure.
    """
    deadline, found = time.monotonic() + patience_s, []
    for process in processes:
        with suppress(ProcessLookupError), os.fdopen(os.pidfd_open(process.pid)) as pidfd:
            left_s = deadline - time.monotonic()
            # That very process, not a later one of its number.
            if process.is_running() and not has_ended(pidfd.fileno(), left_s):
                found.append(process)
    return found


class Lines:
    """What a process says, line by line as it comes."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream
        self.said: list[str] = []
        self.over = False
        self.news = threading.Condition()
        self.thread = threading.Thread(target=self._listen)
        self.thread.start()

    def _listen(self) -> None:
        with self.stream:
            for line in self.stream:
                with self.news:
                    self.said.append(line.rstrip("\n"))
                    self.news.notify_all()
        with self.news:
            self.over = True
            self.news.notify_all()

    def match(self, pattern: str, count: int = 1) -> re.Match[str]:
        """Waits for the count-th line in which the pattern is found."""

        def found() -> list[re.Match[str]]:
            return [hit for line in self.said if (hit := re.search(pattern, line))]

        with self.news:
            self.news.wait_for(lambda: len(found()) >= count or self.over, PATIENCE_S)
            assert len(found()) >= count, f"{pattern!r} not said in:\n" + "\n".join(self.said)
            return found()[count - 1]

    def count(self, pattern: str) -> int:
        with self.news:
            return sum(re.search(pattern, line) is not None for line in self.said)


class Rasher:
    """One run of the program."""

    def __init__(self, program: str, argv: list[str], data_dir: Path, environ: dict[str, str]):
        self.data_dir = data_dir
        self.argv = argv
        self.popen = subprocess.Popen(
            [sys.executable, program, "--data-dir", str(data_dir), "--port", "0", *argv],
            cwd=ROOT,
            env={**clean_environ(), **environ},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.popen.stderr is not None
        self.log = Lines(self.popen.stderr)
        self.process = psutil.Process(self.popen.pid)

    def ready(self) -> Rasher:
        self.address = self.log.match(r"ready on https?://(\S+):(\d+):").groups()
        return self

    def words_of(self, flag: str) -> list[str]:
        """What a flag was started with, for other verbs; [] if it was not given."""
        return [flag, self.argv[self.argv.index(flag) + 1]] if flag in self.argv else []

    @property
    def port(self) -> int:
        return int(self.address[1])

    def children(self, role: str = "") -> dict[str, psutil.Process]:
        """Living children by title; what has not taken its title yet is not among them."""
        found = {}
        for child in self.process.children():
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                words = child.cmdline()  # once: it is empty while the child turns into its program
                title = words[0].strip() if words else ""
                if title.startswith(f"rasher {role}") and child.status() != psutil.STATUS_ZOMBIE:
                    found[title] = child
        return found

    def child(self, role: str, index: int = 0) -> psutil.Process:
        return self.children(role)[f"rasher {role if role == 'relay' else f'{role} {index}'}"]

    def replaced(self, old: psutil.Process, role: str, index: int = 0) -> psutil.Process:
        """Waits for the process that has the old one's title."""
        title = f"rasher {role if role == 'relay' else f'{role} {index}'}"
        seen = {title: old}

        def another() -> bool:
            # What was seen, not looked for anew: a process is hidden while it takes its title.
            seen.update(self.children())
            return seen[title] != old

        self.until(another, f"another {title}")
        return seen[title]

    @staticmethod
    def until(condition: Callable[[], object], what: str) -> None:
        """Polls the state of another process."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"it never came true: {what}"
            threading.Event().wait(POLL_S)

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def end(self, number: int | None = None) -> int:
        """-> the exit code, after a signal or by itself; everything it said has been read."""
        if number is not None:
            self.signal(number)
        code = self.popen.wait(PATIENCE_S)
        self.log.thread.join(PATIENCE_S)
        return code

    def ring_path(self) -> Path:
        """Of the ring in use; below it stand those that are being emptied."""
        return Path((self.data_dir / "ring.path").read_text().splitlines()[0])

    def put(self, count: int) -> None:
        """Orders of no meaning, for stand-in workers."""
        with Ring.attach(self.ring_path()) as ring, ring.writer() as writer:
            for number in range(count):
                writer.put(b"%d" % number, number.to_bytes(16, "big"), timeout=PATIENCE_S)

    def held(self) -> list[int]:
        """How many lie in each hand."""
        with Ring.attach(self.ring_path()) as ring:
            return [ring.held_count(index) for index in range(ring.readers)]

    def left(self) -> int:
        with Ring.attach(self.ring_path()) as ring:
            return ring.depth + sum(self.held())

    def ring(self) -> Ring:
        """Its ring, attached to this process."""
        return Ring.attach(self.ring_path())

    def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """What a query on its database gives."""
        words = self.words_of("--database")
        if words:
            with psycopg.connect(words[1]) as session:
                own = query.replace("?", "%s").encode()
                return session.execute(own, parameters or None).fetchall()
        with closing(sqlite3.connect(self.data_dir / "rasher.db")) as database:
            return list(database.execute(query, parameters))

    def column(self, query: str) -> list[Any]:
        """The first column of that."""
        return [row[0] for row in self.rows(query)]


Start = Callable[..., Rasher]


class Client:
    """Calls one after the other, on one connection that is made again when it breaks."""

    def __init__(self, rasher: Rasher) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", rasher.port, timeout=PATIENCE_S)
        self.broken = 0

    def call(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        text = None if body is None else json.dumps(body)
        self.connection.request(method, path, text, JSON)
        answer = self.connection.getresponse()
        return answer.status, json.loads(answer.read() or b"null")

    def sure_call(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """As often as the connection breaks under it; refused connections are not forgiven."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self.call(method, path, body)
            except ConnectionRefusedError:
                raise
            except (ConnectionError, http.client.HTTPException):
                assert time.monotonic() < deadline
                self.broken += 1
                self.connection.close()

    def stock(self, quantity: str) -> None:
        lot = {"lot_id": "L1", "sku": "BELLY", "quantity": quantity, "expires_at": EXPIRY}
        assert self.call("POST", "/lots", lot)[0] == 201

    def order(self, order_id: str | None = None) -> str:
        """Posts an order of 1.5 and returns its id; 202 or the test fails."""
        body = {
            "order_id": order_id or str(uuid.uuid4()),
            "customer": "Funky Foods",
            "lines": [{"sku": "BELLY", "quantity": "1.5"}],
        }
        status, answer = self.sure_call("POST", "/orders", body)
        assert (status, answer["order_id"]) == (202, body["order_id"])
        return str(answer["order_id"])

    def final(self, order_id: str) -> Any:
        """Polls until the order is neither queued nor processing."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            status, view = self.sure_call("GET", f"/orders/{order_id}")
            assert status == 200, view
            if view["status"] not in ("queued", "processing"):
                return view
            assert time.monotonic() < deadline, view
            threading.Event().wait(0.01)

    def all_allocated(self, ids: list[str]) -> bool:
        return {self.final(order_id)["status"] for order_id in ids} == {"allocated"}


def verb(
    rasher: Rasher, *argv: str, patience_s: float = PATIENCE_S
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "supervisor.py", *argv, "--data-dir", str(rasher.data_dir)],
        cwd=ROOT,
        env=clean_environ(),
        capture_output=True,
        text=True,
        check=False,
        timeout=patience_s,
    )


def call(run: Rasher, method: str, path: str, body: object = None) -> tuple[int, Any]:
    """One call on a connection of its own -> status and content."""
    client = Client(run)
    with closing(client.connection):
        return client.call(method, path, body)
