"""Connections in and out: the cap, running out of descriptors, the drain."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any

import pytest

from ingest import front

if TYPE_CHECKING:
    from tests.ingest.conftest import Start

pytestmark = pytest.mark.anyio

BODY = b'{"customer":"c","lines":[{"sku":"A","quantity":"1"}]}'
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


async def test_connections_past_the_cap_wait_until_one_ends(start: Start) -> None:
    service = await start(max_connections=2)
    first, second, third = [await service.raw() for _ in range(3)]
    for raw in (first, second, third):
        await raw.send(LIVEZ)
    assert [(await raw.answer())[0] for raw in (first, second)] == [200, 200]
    assert len(service.server.server_state.connections) == 2
    await first.hang_up()
    assert (await third.answer())[0] == 200
    assert len(service.server.server_state.connections) == 2


async def test_running_out_of_descriptors_is_survived(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service = await start()
    monkeypatch.setattr(front, "ACCEPT_PAUSE_S", 0.0)
    failures = [OSError(errno.EMFILE, "too many"), BlockingIOError(), ConnectionAbortedError()]
    accept = socket.socket.accept

    def failing(listener: socket.socket) -> Any:
        if failures:
            raise failures.pop()
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", failing)
    raw = await service.raw()
    await raw.send(LIVEZ)
    assert (await raw.answer())[0] == 200
    assert not failures
    assert "too many" in caplog.text


async def test_a_drain_finishes_what_waits_and_closes_what_is_idle(start: Start) -> None:
    service = await start(capacity=1)
    await service.post(BODY)
    idle, busy = await service.raw(), await service.raw()
    await busy.send(service.posting(BODY))
    await service.parked(1)
    service.server.drain()
    assert await idle.closed()
    with pytest.raises(ConnectionRefusedError):
        await service.raw()
    service.reader.take(timeout=0)
    status, headers, _ = await busy.answer()
    assert (status, headers["connection"]) == (202, "close")
    assert await busy.closed()
    assert service.ring.depth == 1


async def test_a_drain_past_its_time_leaves_the_rest_unanswered(start: Start) -> None:
    service = await start(capacity=1, drain_timeout_s=0.05)
    await service.post(BODY)
    busy = await service.raw()
    await busy.send(service.posting(BODY))
    await service.parked(1)
    service.server.drain()
    assert await busy.closed()
    await service.until(lambda: not service.server.server_state.connections)
    assert service.writer.parked == 0
    assert service.ring.depth == 1
