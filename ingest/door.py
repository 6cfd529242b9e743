"""Whether a running service would take an order in: it is asked itself, where it listens.

The address is found by the supervisor's own listening socket: the settings of whoever asks need not
be those of the start, and another service may have their port.
"""

from __future__ import annotations

import http.client
import re
import ssl
import struct
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from ingest.listen import url

LISTENING = "0A"
BODY_BYTES_MAX = 65536
SOCKET = re.compile(r"socket:\[([0-9]+)\]")

Address = tuple[str, int]


class Answer(Struct, frozen=True):
    """reason: why no order would be taken in, None when one would. `url`: of who was asked."""

    url: str
    reason: str | None
    degraded: list[str] = []


class NoAnswer(Exception):
    """Nobody could be asked, for the reason that the text gives."""


def ask(pid: int, patience_s: float, *, tls: bool) -> Answer:
    """What the fronts of that supervisor say. `tls`: as the settings have it; a service that was
    started with a certificate is found without. Raises NoAnswer, OSError."""
    address = next(listening(pid), None)
    if address is None:
        raise NoAnswer("it does not listen yet")
    for secure in (True,) if tls else (False, True):
        try:
            return _ask(address, patience_s, secure)
        except (http.client.HTTPException, ConnectionError, ssl.SSLError):
            continue  # that was not its language
        except TimeoutError:
            break
    raise NoAnswer(f"no front answers on {url(address)} within {patience_s:g} s")


def listening(pid: int) -> Iterator[Address]:
    """Where a connection reaches that process. Raises PermissionError for another user's."""
    inodes = set(_sockets(pid))
    for name in ("tcp", "tcp6"):
        try:
            with Path(f"/proc/{pid}/net/{name}").open(encoding="ascii") as table:
                yield from _own(table, inodes)
        except FileNotFoundError:
            continue  # no IPv6 here, or it has ended


def _sockets(pid: int) -> Iterator[str]:
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            match = SOCKET.fullmatch(str(entry.readlink()))
        except FileNotFoundError:
            continue  # closed meanwhile
        if match is not None:
            yield match[1]


def _own(table: Any, inodes: set[str]) -> Iterator[Address]:
    """The kernel tells of who listens before all connections, of which there may be many."""
    next(table, None)
    for line in table:
        words = line.split()
        if words[3] != LISTENING:
            return
        if words[9] in inodes:
            yield _address(words[1])


def _address(text: str) -> Address:
    """Of `0100007F:1F90`: words of 32 bits, each as it lies in memory; "any" is called as here."""
    words, port = text.split(":")
    numbers = [int(words[at : at + 8], 16) for at in range(0, len(words), 8)]
    host = ip_address(struct.pack(f"={len(numbers)}I", *numbers))
    if host.is_unspecified:
        host = ip_address("127.0.0.1" if host.version == 4 else "::1")
    return str(host), int(port, 16)


def _ask(address: Address, patience_s: float, secure: bool) -> Answer:
    connection = _connection(address, patience_s, secure)
    try:
        connection.request("GET", "/readyz", headers={"connection": "close"})
        answer = connection.getresponse()
        status, body = answer.status, answer.read(BODY_BYTES_MAX)
    finally:
        connection.close()
    where = url(address, "https" if secure else "http")
    try:
        content: dict[str, Any] = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.MsgspecError:
        content = {}
    if status == http.client.OK and content.get("status") == "ready":
        return Answer(where, None, [str(part) for part in content.get("degraded", [])])
    return Answer(where, str(content.get("detail") or f"/readyz answers {status}"))


def _connection(address: Address, patience_s: float, secure: bool) -> http.client.HTTPConnection:
    if not secure:
        return http.client.HTTPConnection(*address, timeout=patience_s)
    # The socket is known to be its own, and it is told nothing: no certificate has to vouch for it.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(*address, timeout=patience_s, context=context)
