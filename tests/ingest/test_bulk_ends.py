"""Where a bulk stops, waits or ends: no room, no reader, no sender, no time."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from typing import Any

import pytest

from ingest import exchange, ndjson, post_bulk, results
from processors.schema import load_order
from processors.store import StoreUnavailable
from processors.tally import WORD
from tests.ingest.bulks import (
    ORDER,
    Emptying,
    bulk,
    chunk,
    head,
    head_of,
    numbered,
    opened,
    own,
    result,
    unchunked,
)
from tests.ingest.conftest import Raw, Start

pytestmark = pytest.mark.anyio


async def test_results_are_told_before_the_wait_for_room(start: Start) -> None:
    service = await start(durability="disk", capacity=2)
    raw = await opened(service, numbered(3))
    await head_of(raw)
    size = int(await raw.reader.readuntil(b"\r\n"), 16)
    told = [json.loads(line) for line in (await raw.reader.readexactly(size + 2))[:-2].splitlines()]
    assert [one["line"] for one in told] == [1, 2]
    await service.parked(1)
    service.reader.release(service.reader.take(1))
    assert (await result(raw))["line"] == 3


async def test_a_full_ring_stops_it_at_a_line_and_says_which(start: Start) -> None:
    service = await start(capacity=2, full_timeout_s=0.05)
    answer, content = await bulk(service, numbered(1000))
    assert [one["line"] for one in content["items"]] == [1, 2, 3]
    last = content["items"][-1]
    assert (last["error"]["status"], last["stopped"]) == (503, True)
    assert last["retry_after"] >= 1
    assert "--full-timeout" in last["error"]["detail"]
    assert (content["accepted"], content["refused"]) == (2, 1)
    assert (answer.headers["connection"], service.ring.depth) == ("close", 2)


async def test_if_not_even_the_first_line_gets_in_the_answer_is_503(start: Start) -> None:
    service = await start(capacity=1, full_timeout_s=0.05)
    await service.post(ORDER)
    answer, content = await bulk(service, numbered(1000))
    assert (answer.status_code, content["status"]) == (503, 503)
    assert int(answer.headers["retry-after"]) >= 1


async def test_lines_wait_in_line_with_single_orders(start: Start) -> None:
    service = await start(capacity=1)
    await service.post(ORDER)
    raw = await opened(service, numbered(2))
    await service.parked(1)
    single = asyncio.create_task(service.post(ORDER.replace(b"Funky", b"Single")))
    await service.parked(2)
    async with Emptying(service) as worker:
        assert (await single).status_code == 202
        await service.until(lambda: len(worker.taken) == 4)
    customers = [load_order(item.payload).customer for item in worker.taken]
    assert customers == ["Funky Foods", "Funky Foods", "Single Foods", "Funky Foods"]
    await raw.hang_up()


async def test_a_hang_up_leaves_what_was_taken_and_nothing_of_what_waited(start: Start) -> None:
    service = await start(capacity=2)
    raw = await opened(service, numbered(100))
    await service.parked(1)
    await raw.hang_up()
    await service.parked(0)
    assert service.ring.depth == 2
    service.reader.release(service.reader.take(2))
    _, content = await bulk(service, ORDER)
    assert content["accepted"] == 1


async def test_nothing_is_read_while_lines_wait_for_room(start: Start) -> None:
    service = await start(capacity=2, drain_timeout_s=0.2)
    raw = await service.raw()
    await raw.send(head())
    line = chunk(ORDER + b"\n") * 1000
    sending = asyncio.create_task(endless(raw, line))
    await service.parked(1)
    connections: Any = service.server.server_state.connections
    (connection,) = (one for one in connections if one.cycle)
    await service.until(lambda: connection.flow.read_paused)
    assert len(connection.cycle.body) < 2 * exchange_bytes()
    sending.cancel()
    raw.writer.transport.abort()


def exchange_bytes() -> int:
    """What uvloop reads at once, and what uvicorn takes for too much."""
    return 256 * 1024 + 65536


async def endless(raw: Raw, data: bytes) -> None:
    while True:
        await raw.send(data)


async def test_a_silent_sender_is_told_where_it_stopped(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ndjson, "LINE_S_MAX", 0.05)
    monkeypatch.setattr("ingest.bulk.LINE_S_MAX", 0.05)
    monkeypatch.setattr(exchange, "DROPPING_S_MAX", 0.05)
    service = await start()
    raw = await opened(service, ORDER + b"\n" + ORDER[:20])
    await head_of(raw)
    assert (await result(raw))["line"] == 1
    last = await result(raw)
    assert (last["line"], last["error"]["status"], last["stopped"]) == (2, 408, True)
    assert await result(raw) is None
    assert await raw.closed()
    silent = await service.raw()
    await silent.send(head())
    assert (await silent.answer())[0] == 408


async def test_who_leaves_results_lying_is_read_no_further_and_cut_off(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "RESULTS_S_MAX", 0.05)
    service = await start()
    raw = await service.raw()
    await raw.send(head(stream=True))
    # Each line of 2 bytes has a result of 130, of which nothing is read.
    with pytest.raises(ConnectionError):
        await endless(raw, chunk(b"{\n" * 4096))
    assert service.ring.depth == 0


async def test_without_room_for_results_it_stops_and_tells_those_that_there_are(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "PART_BYTES", 10_000)
    written = os.pwrite
    left = 1

    def full(fd: int, data: bytes, offset: int) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written(fd, data, offset)

    monkeypatch.setattr("ingest.results.os.pwrite", full)
    service = await start(capacity=16384, slot_bytes=512)
    _, content = await bulk(service, numbered(15_000))
    *taken, last = content["items"]
    assert [one["line"] for one in taken] == list(range(1, last["line"]))
    assert (last["error"]["status"], last["stopped"]) == (503, True)
    assert "--data-dir" in last["error"]["detail"]
    assert service.ring.depth == content["accepted"] == len(taken) < 15_000


async def test_orders_with_ids_stop_where_the_ring_is_full_and_repeats_go_on(start: Start) -> None:
    service = await start(capacity=3, full_timeout_s=0.05)
    ids = b"\n".join(map(own, range(1, 7)))
    _, content = await bulk(service, ids)
    assert [one["line"] for one in content["items"]] == [1, 2, 3, 4]
    assert (content["accepted"], content["items"][3]["stopped"]) == (3, True)
    _, again = await bulk(service, own(1) + b"\n" + own(9) + b"\n" + own(2))
    assert [one.get("order_id") is not None for one in again["items"]] == [True, False]
    assert (again["items"][1]["line"], again["items"][1]["stopped"]) == (2, True)
    service.reader.release(service.reader.take(2))
    _, rest = await bulk(service, b"\n\n\n" + own(4) + b"\n" + own(5))
    assert [one["line"] for one in rest["items"]] == [4, 5]
    assert rest["accepted"] == 2
    assert not len(service.acceptor.turns)


async def test_without_the_database_a_line_with_an_id_stops_it(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await start()

    def away(*_: object) -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr("processors.orders.KnownOrders.find", away)
    _, content = await bulk(service, ORDER + b"\n" + own(1) + b"\n" + ORDER)
    assert [one["line"] for one in content["items"]] == [1, 2]
    assert (content["items"][1]["error"]["status"], content["items"][1]["stopped"]) == (503, True)
    assert service.ring.depth == 1


async def test_a_drain_stops_a_bulk_in_time_to_answer_it(start: Start) -> None:
    service = await start(drain_timeout_s=0.4, capacity=2)
    raw = await opened(service, numbered(100))
    await service.parked(1)
    idle = await opened(service, b"{\n")
    await head_of(idle)
    await result(idle)
    service.server.drain()
    await head_of(raw)
    told = [json.loads(line) for line in (await unchunked(raw)).splitlines()]
    assert [one["line"] for one in told] == [1, 2, 3]
    assert (told[-1]["error"]["status"], told[-1]["stopped"]) == (503, True)
    last = await result(idle)
    assert (last["line"], last["error"]["status"], last["stopped"]) == (2, 503, True)


async def test_more_bulks_than_there_may_be_wait_for_their_turn(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(post_bulk, "BULKS_MAX", 1)
    service = await start(full_timeout_s=0.2)
    first = await opened(service, ORDER + b"\n")
    await head_of(first)
    answer, content = await bulk(service, ORDER)
    assert (answer.status_code, "bulks" in content["detail"]) == (503, True)
    assert service.acceptor.tally.page[WORD["full"]] == 1
    second = asyncio.create_task(bulk(service, ORDER))
    await first.send(b"0\r\n\r\n")
    assert (await second)[1]["accepted"] == 1
