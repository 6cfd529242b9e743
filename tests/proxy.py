"""A proxy in front of a PostgreSQL server that loses the answers to COMMIT."""

from __future__ import annotations

import selectors
import socket
import threading
from contextlib import suppress
from typing import Literal

CHUNK = 65536

Fault = Literal["cut", "silent"]


class Proxy:
    """Hands on what it gets. While `fault` is set, a connection that sends a COMMIT never hears of
    it: once the server has answered, the connection is cut, or stays open without another byte."""

    def __init__(self, upstream_port: int) -> None:
        self.fault: Fault | None = None
        self.swallowed = 0
        self._upstream = ("127.0.0.1", upstream_port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._waker, waiting = socket.socketpair()
        self._waiting = waiting
        self._selector.register(waiting, selectors.EVENT_READ)
        self._other: dict[socket.socket, socket.socket] = {}
        self._clients: set[socket.socket] = set()
        self._doomed: set[socket.socket] = set()  # clients whose answers are swallowed
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._waker.send(b"x")
        self._thread.join()
        for each in [*self._other, self._listener, self._waker, self._waiting]:
            each.close()
        self._selector.close()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                end = key.fileobj
                assert isinstance(end, socket.socket)
                if end is self._waiting:
                    return
                if end is self._listener:
                    self._accept()
                elif end in self._other:  # else its partner's end has ended it, too
                    self._hand_on(end)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection(self._upstream)
        except OSError:
            client.close()
            return
        self._clients.add(client)
        for one, other in ((client, server), (server, client)):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._other[one] = other
            self._selector.register(one, selectors.EVENT_READ)

    def _hand_on(self, end: socket.socket) -> None:
        other = self._other[end]
        try:
            data = end.recv(CHUNK)
            if end in self._clients and self.fault and b"COMMIT\0" in data:
                self._doomed.add(end)
            if other in self._doomed and data:
                self.swallowed += 1
                if self.fault != "silent":
                    self._drop(end, other)
                return
            if data:
                other.sendall(data)
                return
        except OSError:
            pass
        self._drop(end, other)

    def _drop(self, *ends: socket.socket) -> None:
        for end in ends:
            with suppress(KeyError):
                self._selector.unregister(end)
            self._other.pop(end, None)
            self._clients.discard(end)
            self._doomed.discard(end)
            end.close()
