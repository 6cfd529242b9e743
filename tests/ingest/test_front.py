"""Connections in and out: the cap, running out of descriptors, the drain."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import TYPE_CHECKING, Any

import pytest

from ingest import front
from ingest.protocol import FrontProtocol

if TYPE_CHECKING:
    from tests.ingest.conftest import Service, Start

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


# ---- retiring: another front has taken over ------------------------------------------------------


def protocols(service: Service) -> list[FrontProtocol]:
    found = service.server.server_state.connections
    return [one for one in found if isinstance(one, FrontProtocol)]


async def test_a_retiring_front_takes_orders_in_on_open_connections_and_announces_the_close(
    start: Start,
) -> None:
    service = await start()
    idle, fresh = await service.raw(), await service.raw()
    await service.until(lambda: len(service.server.server_state.connections) == 2)
    await idle.send(LIVEZ)
    assert "connection" not in (await idle.answer())[1]
    service.server.retire()
    for raw in (idle, fresh):
        await raw.send(service.posting(BODY))
        status, headers, _ = await raw.answer()
        assert (status, headers["connection"]) == (202, "close")
        assert await raw.closed()
    assert service.ring.depth == 2


async def test_a_retiring_front_accepts_no_connection(start: Start) -> None:
    service = await start()
    open_one = await service.raw()
    await service.until(lambda: service.server.server_state.connections)
    service.server.retire()
    await service.until(lambda: service.server._listener.fileno() == -1)
    with pytest.raises(ConnectionRefusedError):  # it was the only one that listened
        await service.raw()
    await open_one.send(LIVEZ)
    assert (await open_one.answer())[0] == 200


async def test_what_waits_for_room_is_answered_by_a_retiring_front(start: Start) -> None:
    service = await start(capacity=1)
    await service.post(BODY)
    busy = await service.raw()
    await busy.send(service.posting(BODY))
    await service.parked(1)
    service.server.retire()
    service.reader.take(timeout=0)
    status, headers, _ = await busy.answer()
    assert (status, headers["connection"]) == (202, "close")
    assert await busy.closed()


@pytest.mark.parametrize("when", ["before", "between"])
async def test_orders_sent_one_behind_the_other_are_all_answered(start: Start, when: str) -> None:
    service = await start(capacity=1)
    await service.post(BODY)
    raw = await service.raw()
    if when == "between":
        await raw.send(service.posting(BODY))
        await service.parked(1)
        service.server.retire()
        await raw.send(service.posting(BODY) + LIVEZ)
        await service.until(lambda: any(one.owes for one in protocols(service)))
    else:
        await service.until(lambda: len(service.server.server_state.connections) == 2)
        service.server.retire()
        await raw.send(service.posting(BODY) * 2 + LIVEZ)
    answers = []
    for _ in range(2):
        await service.parked(1)
        service.reader.release(service.reader.take(timeout=0))
        answers.append(await raw.answer())
    answers.append(await raw.answer())
    assert [status for status, _, _ in answers] == [202, 202, 200]
    assert ["connection" in headers for _, headers, _ in answers] == [False, False, True]
    assert await raw.closed()


async def test_an_idle_connection_of_a_retiring_front_lives_as_long_as_ever(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front, "KEEP_ALIVE_S", 1)
    service = await start()
    raw = await service.raw()
    await raw.send(LIVEZ)
    await raw.answer()
    loop = asyncio.get_running_loop()
    begun = loop.time()
    service.server.retire()
    assert await raw.closed()
    assert loop.time() - begun > 0.9


async def test_a_retiring_front_that_is_asked_to_drain_closes_what_is_idle(start: Start) -> None:
    service = await start()
    raw = await service.raw()
    await raw.send(LIVEZ)
    await raw.answer()
    loop = asyncio.get_running_loop()
    begun = loop.time()
    service.server.retire()
    service.server.drain()
    assert await raw.closed()
    assert loop.time() - begun < front.KEEP_ALIVE_S / 2


async def test_a_request_that_has_come_is_not_cut_off_by_the_idle_timer(start: Start) -> None:
    service = await start()
    with socket.create_connection(("127.0.0.1", service.port)) as client:
        await service.until(lambda: service.server.server_state.connections)
        (protocol,) = protocols(service)
        client.sendall(LIVEZ)  # on loopback it has come when this returns, and nobody read it yet
        protocol.timeout_keep_alive_handler()
        client.setblocking(False)
        answer = await asyncio.get_running_loop().sock_recv(client, 4096)
        assert answer.startswith(b"HTTP/1.1 200")
        protocol.timeout_keep_alive_handler()
        assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
