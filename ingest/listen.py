"""The listening socket: bound once by the supervisor, shared by every front that ever runs."""

from __future__ import annotations

import errno
import ipaddress
import select
import socket
import time

from processors.datadir import CannotStart
from processors.settings import HttpSettings

# More than any kernel's somaxconn: the kernel cuts it to its own.
BACKLOG = 65535
# Of each connection, for the kernel would let answers that nobody takes grow to megabytes.
SEND_BUFFER_BYTES = 128 * 1024
# Fronts of a killed run close theirs within milliseconds; whoever else has the port keeps it.
BIND_PATIENCE_S = 1.0
BIND_EVERY_S = 0.05


def listen(http: HttpSettings, *, bound_only: bool = False) -> socket.socket:
    """Raises CannotStart with the address, its flags and the reason.

    bound_only: the address is this process's, connections are refused until `socket.listen`.
    """
    where = f"--host {http.host} --port {http.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            http.host, http.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise CannotStart(f"{where}: {error.strerror}") from error
    if not http.keys and not ipaddress.ip_address(address[0]).is_loopback:
        told = f"{http.host} is {address[0]} here, no loopback address, which needs --keys"
        raise CannotStart(f"{where}: {told}")
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    try:
        bind(listener, address, bound_only)
    except OSError as error:
        listener.close()
        raise CannotStart(f"{where}: can't listen on {url(address)}: {error.strerror}") from error
    return listener


def bind(listener: socket.socket, address: tuple[object, ...], bound_only: bool) -> None:
    deadline = time.monotonic() + BIND_PATIENCE_S
    while True:
        try:
            listener.bind(address)
            if not bound_only:
                listener.listen(BACKLOG)
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise
        select.select([], [], [], BIND_EVERY_S)


def url(address: tuple[object, ...], scheme: str = "http") -> str:
    """-> http://127.0.0.1:8000 for a socket's address."""
    host, port = address[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in str(host) else f"{scheme}://{host}:{port}"


def scheme(http: HttpSettings) -> str:
    """https with a certificate."""
    return "https" if http.ssl_certfile else "http"
