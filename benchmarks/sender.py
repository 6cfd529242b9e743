"""An open-loop sender: every order has an intended time, and its latency counts from there.

    python -m benchmarks.sender PORT FILE --phase RATE:SECONDS [--phase ...] [--connections 64]

Whatever the server does, an order is due each 1/rate seconds; when no connection is free it waits
here, and that is in its latency. So a stall shows in all the orders that it held up. One thread,
plain sockets, one request at a time on each connection. FILE gets what became of each order, as
`Sent` has it. With --spin it never sleeps: for a core of its own, so that neither a timer's
coarseness nor its own waking up is measured.
"""

from __future__ import annotations

import argparse
import gc
import math
import re
import resource
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from benchmarks.orders import BODIES

READ_BYTES = 65_536
EVENTS_MAX = 256
CONNECT_S_MAX = 30.0
# Files that are open beside the connections.
OTHER_FILES = 64
# After the last order was due; longer than a full ring keeps a client waiting.
LAST_ANSWERS_S_MAX = 30.0
# Shorter than a server keeps an idle connection, so that none is used as it closes.
IDLE_S_MAX = 3.0
NO_ANSWER = 0
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
ORDER_ID = re.compile(rb'"order_id": ?"([0-9a-f-]{36})"')

Seconds = npt.NDArray[np.float64]


class Phase(Struct, frozen=True):
    """Orders at one rate."""

    rate_per_s: float
    duration_s: float

    @property
    def orders(self) -> int:
        return round(self.rate_per_s * self.duration_s)


class Sent(Struct, frozen=True):
    """Of each order, in the order of their intended times: seconds from the start on, the latency
    from the intended time to the last byte of the answer (nan without one), how long after its
    intended time it was sent (nan: never), and the status, 0 without an answer. `began_s`: the
    start, in seconds since 1970."""

    intended_s: Seconds
    latency_s: Seconds
    late_s: Seconds
    status: npt.NDArray[np.int16]
    began_s: float

    @property
    def answered(self) -> npt.NDArray[np.bool_]:
        """Which were answered 2xx."""
        return (self.status >= 200) & (self.status < 300)


class Connection:
    """One of the sender's. `number`: of the order that is under way, -1 of none."""

    __slots__ = ("number", "read", "socket", "used_s")

    def __init__(self) -> None:
        self.socket: socket.socket | None = None
        self.number = -1
        self.read = b""
        self.used_s = 0.0


class Sender:
    """Sends the orders of `phases` once."""

    def __init__(
        self, port: int, phases: Sequence[Phase], connections: int, ledger: IO[str] | None
    ) -> None:
        self._address = ("127.0.0.1", port)
        self._requests = [request_of(port, body) for body in BODIES]
        self._intended_s = intended(phases)
        count = len(self._intended_s)
        self._latency_s = np.full(count, math.nan)
        self._late_s = np.full(count, math.nan)
        self._status = np.zeros(count, np.int16)
        self._ledger = ledger
        self._poll = select.epoll()
        self._by_fd: dict[int, Connection] = {}
        self._idle: deque[Connection] = deque()
        for _ in range(connections):
            connection = Connection()
            self._open(connection)
            self._idle.append(connection)
        self._under_way = 0

    def run(self, *, spin: bool) -> Sent:
        """Until all are answered, or LAST_ANSWERS_S_MAX after the last was due."""
        times: list[float] = self._intended_s.tolist()
        began_s, clock = time.time(), time.perf_counter
        start_s, number = clock(), 0
        last_s = (times[-1] if times else 0.0) + LAST_ANSWERS_S_MAX
        while number < len(times) or self._under_way:
            now_s = clock() - start_s
            while number < len(times) and times[number] <= now_s and self._idle:
                self._send(self._idle.popleft(), number, now_s)
                number += 1
                now_s = clock() - start_s
            if now_s > last_s:
                break
            patience_s = 0.0 if spin else self._patience_s(times, number, now_s, last_s)
            for fd, _ in self._poll.poll(patience_s, EVENTS_MAX):
                self._receive(self._by_fd[fd], clock() - start_s)
        return Sent(self._intended_s, self._latency_s, self._late_s, self._status, began_s)

    def close(self) -> None:
        """Hangs up."""
        for connection in list(self._by_fd.values()):
            self._shut(connection)
        self._poll.close()

    def _patience_s(self, times: list[float], number: int, now_s: float, last_s: float) -> float:
        if number < len(times) and self._idle:
            return max(0.0, times[number] - now_s)
        return max(0.0, last_s - now_s)

    def _send(self, connection: Connection, number: int, now_s: float) -> None:
        if connection.socket is None or now_s - connection.used_s > IDLE_S_MAX:
            self._shut(connection)
            self._open(connection)
        assert connection.socket is not None
        request = self._requests[number % len(self._requests)]
        self._late_s[number] = now_s - self._intended_s[number]
        connection.number, connection.used_s = number, now_s
        self._under_way += 1
        try:
            if connection.socket.send(request) != len(request):
                raise BlockingIOError("the server does not read")
        except OSError:
            self._end(connection)

    def _receive(self, connection: Connection, now_s: float) -> None:
        assert connection.socket is not None
        try:
            data = connection.socket.recv(READ_BYTES)
        except OSError:
            data = b""
        if not data:
            self._end(connection)
            return
        data = connection.read + data
        head = data.find(b"\r\n\r\n")
        length = LENGTH.search(data, 0, head) if head > 0 else None
        if length is None or len(data) < head + 4 + int(length[1]):
            connection.read = data
            return
        self._note(connection.number, now_s, data)
        connection.number, connection.read, connection.used_s = -1, b"", now_s
        self._under_way -= 1
        self._idle.append(connection)

    def _note(self, number: int, now_s: float, answer: bytes) -> None:
        status = int(answer[9:12])
        self._status[number] = status
        self._latency_s[number] = now_s - self._intended_s[number]
        if self._ledger is not None and status == 202 and (found := ORDER_ID.search(answer)):
            self._ledger.write(f"{found[1].decode()} {status}\n")

    def _end(self, connection: Connection) -> None:
        """It broke; the order that was under way gets no answer."""
        self._shut(connection)
        connection.read = b""
        if connection.number >= 0:
            connection.number = -1
            self._under_way -= 1
            self._idle.append(connection)

    def _open(self, connection: Connection) -> None:
        made = socket.create_connection(self._address, CONNECT_S_MAX)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setblocking(False)
        connection.socket = made
        self._by_fd[made.fileno()] = connection
        self._poll.register(made, select.EPOLLIN)

    def _shut(self, connection: Connection) -> None:
        if connection.socket is not None:
            del self._by_fd[connection.socket.fileno()]
            connection.socket.close()
            connection.socket = None


def intended(phases: Sequence[Phase]) -> Seconds:
    """When each order is due, seconds from the start on."""
    parts, start_s = [], 0.0
    for phase in phases:
        parts.append(start_s + np.arange(phase.orders) / phase.rate_per_s)
        start_s += phase.duration_s
    return np.concatenate(parts)


def load_sent(path: Path) -> Sent:
    """What a sender wrote."""
    with np.load(path) as file:
        return Sent(
            file["intended_s"], file["latency_s"], file["late_s"], file["status"],
            float(file["began_s"]),
        )  # fmt: skip


def command(
    port: int, path: Path, phases: Sequence[Phase], connections: int, *flags: str
) -> list[str]:
    """Of a sender in a process of its own."""
    words = [f"--phase={phase.rate_per_s!r}:{phase.duration_s!r}" for phase in phases]
    words += ["--connections", str(connections), *flags]
    return [sys.executable, "-m", "benchmarks.sender", str(port), str(path), *words]


def request_of(port: int, body: bytes) -> bytes:
    """An order as it is sent."""
    return (
        f"POST /orders HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode() + body


def _phase(text: str) -> Phase:
    rate, _, duration = text.partition(":")
    return Phase(float(rate), float(duration))


def allow_files(count: int) -> None:
    """Raises this process's own limit on open files, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main(argv: Sequence[str]) -> int:
    """See the head of this module."""
    parser = argparse.ArgumentParser("sender")
    parser.add_argument("port", type=int)
    parser.add_argument("file", type=Path)
    parser.add_argument("--phase", type=_phase, action="append", required=True)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--ledger", type=Path)
    parser.add_argument("--spin", action="store_true")
    given = parser.parse_args(argv)
    allow_files(given.connections + OTHER_FILES)
    ledger = given.ledger.open("w") if given.ledger else None
    sender = Sender(given.port, given.phase, given.connections, ledger)
    gc.disable()  # a pause of ours would count as the server's
    try:
        sent = sender.run(spin=given.spin)
    finally:
        sender.close()
        if ledger is not None:
            ledger.close()
    np.savez(
        given.file, intended_s=sent.intended_s, latency_s=sent.latency_s, late_s=sent.late_s,
        status=sent.status, began_s=sent.began_s,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
