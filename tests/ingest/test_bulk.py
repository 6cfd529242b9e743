"""`POST /orders/bulk` in a front of this process."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from ingest import exchange, ndjson, post_bulk, results
from ingest.origin import make_origin
from processors.schema import load_header, load_order, parse_uuid
from processors.store import StoreUnavailable
from ringbuf import Empty, Item
from tests.ingest.conftest import Raw, Service, Start

pytestmark = pytest.mark.anyio

ORDER = b'{"customer":"Funky Foods","lines":[{"sku":"BELLY","quantity":"1.5"}]}'
NDJSON = {"content-type": "application/x-ndjson"}
STREAM = {**NDJSON, "accept": "application/x-ndjson"}


def own(number: int, body: bytes = ORDER) -> bytes:
    return b'{"order_id":"018f0000-0000-7000-8000-%012d",' % number + body[1:]


def numbered(count: int) -> bytes:
    """Orders that tell their lines."""
    return b"".join(
        ORDER.replace(b"}]", b'}],"reference":"%d"' % line) + b"\n" for line in range(1, count + 1)
    )


async def bulk(
    service: Service, body: bytes, query: str = "", **headers: str
) -> tuple[httpx.Response, Any]:
    answer = await service.client.post(
        f"/orders/bulk{query}", content=body, headers={**NDJSON, **headers}
    )
    return answer, answer.json()


def head(stream: bool = False, length: int | None = None) -> bytes:
    """Of a bulk sent by hand, chunked without a length."""
    size = b"transfer-encoding: chunked" if length is None else b"content-length: %d" % length
    accept = b"accept: application/x-ndjson\r\n" if stream else b""
    return (
        b"POST /orders/bulk HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-ndjson\r\n"
        + accept + size + b"\r\n\r\n"
    )  # fmt: skip


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def result(raw: Raw) -> Any:
    """The next of the results that are streamed one in a chunk; None at the end."""
    size = int((await asyncio.wait_for(raw.reader.readuntil(b"\r\n"), 20)).strip(), 16)
    data = await raw.reader.readexactly(size + 2)
    return json.loads(data) if size else None


async def opened(service: Service, *parts: bytes) -> Raw:
    """A streamed bulk of which this was sent."""
    raw = await service.raw()
    await raw.send(head(stream=True) + b"".join(map(chunk, parts)))
    return raw


async def head_of(raw: Raw) -> bytes:
    return await asyncio.wait_for(raw.reader.readuntil(b"\r\n\r\n"), 20)


def waiting(service: Service) -> list[Item]:
    return service.ring.snapshot().waiting


class Emptying:
    """Takes orders out of the ring for as long as it is entered, as a worker would."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.taken: list[Item] = []

    async def __aenter__(self) -> Emptying:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        while True:
            with suppress(Empty):
                items = self.service.reader.take(64, timeout=0)
                self.taken += items
                self.service.reader.release(items)
            await asyncio.sleep(0)


@pytest.mark.parametrize("durability", ["memory", "disk"])
async def test_every_line_gets_its_result_and_lies_in_the_ring_in_order(
    start: Start, durability: str
) -> None:
    service = await start(durability=durability)
    answer, content = await bulk(service, numbered(50))
    assert (answer.status_code, content["accepted"], content["refused"]) == (200, 50, 0)
    assert [one["line"] for one in content["items"]] == list(range(1, 51))
    found = waiting(service)
    assert [item.key for item in found] == [parse_uuid(one["order_id"]) for one in content["items"]]
    assert [load_order(item.payload).reference for item in found] == [str(n) for n in range(1, 51)]


@pytest.mark.parametrize("durability", ["memory", "disk"])
async def test_more_orders_than_slots_go_through_in_order_and_once(
    start: Start, durability: str
) -> None:
    service = await start(durability=durability, capacity=7)
    async with Emptying(service) as worker:
        _, content = await bulk(service, numbered(1000))
    assert (content["accepted"], content["refused"]) == (1000, 0)
    references = [load_order(item.payload).reference for item in worker.taken]
    assert references == [str(line) for line in range(1, 1001)]
    assert len({one["order_id"] for one in content["items"]}) == 1000


LINES: list[tuple[bytes, int | None]] = [
    (ORDER, 202),
    (b"", None),
    (ORDER + b"\r", 202),
    (b" \t\r", None),
    (b"{", 400),
    (b"\xff" + ORDER, 400),
    (b'{"customer":"","lines":[]}', 422),
    (b" " * 70_000 + ORDER, 413),
    (ORDER.replace(b"Funky", "Süße".encode()), 202),
    (own(1), 202),
    (own(1).replace(b"1.5", b"2.5"), 422),
    (own(1), 202),
    (b"[]", 422),
    (ORDER, 202),
]


@pytest.mark.parametrize("size", [1, 7, 4096, 10**6])
@pytest.mark.parametrize("stream", [False, True])
async def test_lines_of_every_kind_each_get_what_they_would_get_alone(
    start: Start, size: int, stream: bool
) -> None:
    service = await start(durability="disk")
    body = b"\n".join(line for line, _ in LINES)  # the last one without its end
    lengthy = size == 1
    body = body.replace(b" " * 70_000, b" ") if lengthy else body

    async def parts() -> AsyncIterator[bytes]:
        for at in range(0, len(body), size):
            yield body[at : at + size]

    headers = STREAM if stream else NDJSON
    answer = await service.client.post("/orders/bulk", content=parts(), headers=headers)
    text = answer.text
    items = [json.loads(line) for line in text.splitlines()] if stream else answer.json()["items"]
    expected = {
        number: 202 if lengthy and status == 413 else status
        for number, (_, status) in enumerate(LINES, 1)
        if status
    }
    found = {one["line"]: one["error"]["status"] if "error" in one else 202 for one in items}
    assert (list(found), found) == (list(expected), expected)
    if not stream:
        counts = answer.json()["accepted"], answer.json()["refused"]
        taken = list(expected.values()).count(202)
        assert counts == (taken, len(expected) - taken)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
async def test_a_line_may_be_as_long_as_the_limit_and_no_longer(start: Start, end: bytes) -> None:
    limit = 200
    service = await start(max_body_bytes=limit)
    for size, status in ((limit - 1, 202), (limit, 202), (limit + 1, 413), (10 * limit, 413)):
        _, content = await bulk(service, ORDER.ljust(size) + end)
        (found,) = content["items"]
        assert found.get("error", {"status": 202})["status"] == status, size
    assert str(limit) in found["error"]["detail"]
    assert "--max-body-bytes" in found["error"]["detail"]


async def test_an_error_is_a_problem_with_its_pointers(service: Service) -> None:
    _, content = await bulk(service, b'{"customer":"c","lines":[{"sku":"A","quantity":"x"}]}')
    error = content["items"][0]["error"]
    alone = await service.post(b'{"customer":"c","lines":[{"sku":"A","quantity":"x"}]}')
    assert error == alone.json()
    assert error["errors"][0]["pointer"] == "/lines/0/quantity"


async def test_with_errors_only_the_taken_are_counted_and_not_told(service: Service) -> None:
    _, content = await bulk(service, ORDER + b"\n{\n" + ORDER, "?errors_only=true")
    assert [one["line"] for one in content["items"]] == [2]
    assert (content["accepted"], content["refused"]) == (2, 1)


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("", {"content-type": "application/json"}, 415),
        ("?errors_only=maybe", NDJSON, 422),
        ("?limit=1", NDJSON, 422),
        ("", {**NDJSON, "idempotency-key": "a b"}, 400),
    ],
)
async def test_what_is_wrong_with_the_request_itself_is_its_answer(
    service: Service, query: str, headers: dict[str, str], status: int
) -> None:
    answer = await service.client.post(f"/orders/bulk{query}", content=ORDER, headers=headers)
    assert (answer.status_code, answer.json()["status"]) == (status, status)
    assert service.ring.depth == 0


async def test_a_bulk_without_lines_is_an_empty_answer(service: Service) -> None:
    for body in (b"", b"\n\r\n\n"):
        _, content = await bulk(service, body)
        assert content == {"items": [], "accepted": 0, "refused": 0}
        answer = await service.client.post("/orders/bulk", content=body, headers=STREAM)
        assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("durability", ["memory", "disk"])
async def test_a_result_is_streamed_while_the_body_is_still_to_come(
    start: Start, durability: str
) -> None:
    service = await start(durability=durability)
    raw = await opened(service, ORDER + b"\n")
    assert b" 200 OK" in await head_of(raw)
    assert (await result(raw))["line"] == 1
    await raw.send(chunk(b"{\n"))
    assert (await result(raw))["error"]["status"] == 400
    await raw.send(chunk(ORDER) + b"0\r\n\r\n")
    assert (await result(raw))["line"] == 3
    assert await result(raw) is None


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


async def test_results_beyond_memory_lie_in_a_file_without_a_name(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "PART_BYTES", 1000)
    service = await start(capacity=100)
    folder = Path(service.settings.data_dir)
    before = set(folder.iterdir())  # noqa: ASYNC240
    async with Emptying(service):
        _, content = await bulk(service, numbered(2000) + b"{")
    assert [one["line"] for one in content["items"]] == list(range(1, 2002))
    assert (content["accepted"], content["refused"]) == (2000, 1)
    assert set(folder.iterdir()) == before  # noqa: ASYNC240


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


async def test_a_repeat_under_one_key_is_the_same_orders(start: Start) -> None:
    service = await start(durability="disk")
    body = numbered(5) + own(7)
    _, first = await bulk(service, body, **{"idempotency-key": '"k"'})
    _, again = await bulk(service, body, **{"idempotency-key": "k"})
    assert (first, first["accepted"]) == (again, 6)
    assert service.ring.depth == 6
    _, other = await bulk(service, body.replace(b"1.5", b"2"), **{"idempotency-key": "k"})
    assert {one["error"]["status"] for one in other["items"]} == {422}


async def test_two_bulks_under_one_key_at_once_are_one_bulk(start: Start) -> None:
    service = await start(durability="disk", capacity=1000)
    body = numbered(300)
    both = [bulk(service, body, **{"idempotency-key": "k"}) for _ in range(2)]
    (_, first), (_, second) = await asyncio.gather(*both)
    assert (first, first["accepted"]) == (second, 300)
    assert service.ring.depth == 300
    assert not len(service.acceptor.turns)


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


async def test_every_order_of_it_bears_the_names_of_the_request(service: Service) -> None:
    body = numbered(2) + own(1) + b"\n" + ORDER.replace(b"Funky", "Süße".encode())
    answer, _ = await bulk(service, body, **{"x-request-id": "r-1"})
    assert answer.headers["x-request-id"] == "r-1"
    headers = [load_header(item.header) for item in waiting(service)]
    assert [one.request_id for one in headers] == ["r-1"] * 4
    assert make_origin(None).header == b""


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


async def unchunked(raw: Raw) -> bytes:
    found = b""
    while size := int(await asyncio.wait_for(raw.reader.readuntil(b"\r\n"), 20), 16):
        found += (await raw.reader.readexactly(size + 2))[:-2]
    return found


async def test_more_bulks_than_there_may_be_wait_for_their_turn(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(post_bulk, "BULKS_MAX", 1)
    service = await start(full_timeout_s=0.2)
    first = await opened(service, ORDER + b"\n")
    await head_of(first)
    answer, content = await bulk(service, ORDER)
    assert (answer.status_code, "bulks" in content["detail"]) == (503, True)
    second = asyncio.create_task(bulk(service, ORDER))
    await first.send(b"0\r\n\r\n")
    assert (await second)[1]["accepted"] == 1


async def test_an_expected_100_is_sent(service: Service) -> None:
    raw = await service.raw()
    await raw.send(head(length=len(ORDER))[:-2] + b"expect: 100-continue\r\n\r\n")
    assert b" 100 " in await head_of(raw)
    await raw.send(ORDER)
    assert json.loads((await raw.answer())[2])["accepted"] == 1


async def test_who_wants_ndjson_says_so() -> None:
    wanted: Callable[[bytes | None], bool] = post_bulk.wants_stream
    assert wanted(b"application/json;q=0.5, application/x-ndjson; q=0.1")
    assert not wanted(b"application/json, application/x-ndjson;q=0")
    assert not wanted(b"*/*")
    assert not wanted(None)
