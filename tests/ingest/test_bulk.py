"""`POST /orders/bulk` in a front of this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from ingest import post_bulk, results
from ingest.origin import make_origin
from processors.schema import load_header, load_order, parse_uuid
from processors.tally import REFUSALS, WORD
from tests.ingest.bulks import (
    NDJSON,
    ORDER,
    STREAM,
    Emptying,
    bulk,
    chunk,
    head,
    head_of,
    numbered,
    opened,
    own,
    result,
    waiting,
)
from tests.ingest.conftest import Service, Start

pytestmark = pytest.mark.anyio


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
    assert sum(service.acceptor.tally.page[WORD[reason]] for reason in REFUSALS) == 1


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


async def test_every_order_of_it_bears_the_names_of_the_request(service: Service) -> None:
    body = numbered(2) + own(1) + b"\n" + ORDER.replace(b"Funky", "Süße".encode())
    answer, _ = await bulk(service, body, **{"x-request-id": "r-1"})
    assert answer.headers["x-request-id"] == "r-1"
    headers = [load_header(item.header) for item in waiting(service)]
    assert [one.request_id for one in headers] == ["r-1"] * 4
    assert make_origin(None).header == b""


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
