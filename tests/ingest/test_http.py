"""HTTP itself: every refusal is a problem, bodies and connections are bounded."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from ingest import protocol
from ingest.problems import PROBLEMS

if TYPE_CHECKING:
    from tests.ingest.conftest import Raw, Service, Start

pytestmark = pytest.mark.anyio

BODY = b'{"customer":"c","lines":[{"sku":"A","quantity":"1"}]}'

KINDS = {(kind.uri, kind.title, kind.status) for kind in PROBLEMS}


async def problem(raw: Raw) -> tuple[int, dict[str, str]]:
    status, headers, body = await raw.answer()
    assert headers["content-type"] == "application/problem+json"
    content = json.loads(body)
    assert (content["type"], content["title"], content["status"]) in KINDS
    assert content["status"] == status
    assert content["detail"]
    return status, headers


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/orders/", 404),
        ("POST", "/lots/", 404),
        ("DELETE", "/orders", 405),
        ("PUT", "/inventory", 405),
        ("BREW", "/livez", 400),
        ("OPTIONS", "*", 404),
    ],
)
async def test_what_the_router_refuses_is_a_problem(
    service: Service, method: str, path: str, status: int
) -> None:
    raw = await service.raw()
    await raw.send(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert (await problem(raw))[0] == status


async def test_405_lists_every_method_of_the_path(service: Service) -> None:
    refused = await service.client.delete("/lots")
    assert set(refused.headers["allow"].split(", ")) == {"GET", "HEAD", "POST"}


@pytest.mark.parametrize(
    "content_type", ["application/json", "Application/JSON; charset=utf-8", "application/json;x=y"]
)
async def test_json_is_taken_with_parameters(service: Service, content_type: str) -> None:
    answer = await service.client.post(
        "/orders", content=BODY, headers={"content-type": content_type}
    )
    assert answer.status_code == 202


@pytest.mark.parametrize(
    "content_type", [None, "", "text/plain", "application/jsonp", "application/json-seq"]
)
async def test_any_other_type_is_415(service: Service, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    refused = await service.client.post("/orders", content=BODY, headers=headers)
    assert refused.status_code == 415
    assert refused.headers["content-type"] == "application/problem+json"
    assert service.ring.depth == 0


@pytest.mark.parametrize("path", ["/orders", "/lots", "/lots/x/adjustments"])
@pytest.mark.parametrize("body", [b"", b"{", b"NaN", b"\xff", b"[" * 60000, b'"\\ud800"'])
async def test_malformed_json_is_400(service: Service, path: str, body: bytes) -> None:
    refused = await service.post(body, path)
    assert refused.status_code == 400
    assert refused.headers["content-type"] == "application/problem+json"


async def test_every_field_error_is_told_at_once(service: Service) -> None:
    refused = await service.post(b'{"lines":[{"sku":"a b","quantity":0}],"x":1}')
    assert refused.status_code == 422
    pointers = {error["pointer"] for error in refused.json()["errors"]}
    assert pointers == {"/customer", "/lines/0/sku", "/lines/0/quantity", "/x"}


async def test_a_body_announced_too_large_is_413_before_it_is_read(start: Start) -> None:
    service = await start(max_body_bytes=1000)
    raw = await service.raw()
    await raw.send(service.posting(b"x" * 1001)[:-1001])
    status, headers = await problem(raw)
    assert (status, headers["connection"]) == (413, "close")


async def test_a_streamed_body_is_counted_and_the_rest_dropped(start: Start) -> None:
    service = await start(max_body_bytes=1000)
    raw = await service.raw()
    head = "POST /orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    await raw.send(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
    await raw.send(b"3e8\r\n" + b"x" * 1000 + b"\r\n" + b"1\r\nx\r\n")
    assert (await problem(raw))[0] == 413
    # The answer came first; a client that goes on sending is not reset.
    for _ in range(16):
        await raw.send(b"10000\r\n" + b"x" * 65536 + b"\r\n")
    await raw.send(b"0\r\n\r\n")
    assert await raw.closed()
    assert service.ring.depth == 0


async def test_dropping_ends_after_8_mib(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.exchange.DROPPING_S_MAX", 60.0)
    service = await start()
    raw = await service.raw()
    await raw.send(service.posting(b"")[:-21] + b"Content-Length: 100000000\r\n\r\n")
    assert (await problem(raw))[0] == 413
    with pytest.raises(ConnectionError):
        await endless(raw, 65536)
    raw.writer.transport.abort()


async def test_dropping_ends_after_its_time(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.exchange.DROPPING_S_MAX", 0.05)
    service = await start()
    raw = await service.raw()
    await raw.send(service.posting(b"")[:-21] + b"Content-Length: 100000000\r\n\r\n")
    assert (await problem(raw))[0] == 413
    assert await raw.closed()


async def test_a_slow_body_is_408(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.exchange.BODY_S_MAX", 0.05)
    service = await start()
    raw = await service.raw()
    await raw.send(service.posting(BODY)[:-5])
    status, headers = await problem(raw)
    assert (status, headers["connection"]) == (408, "close")
    assert service.ring.depth == 0


async def test_a_slow_head_is_408(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_S_MAX", 0.05)
    service = await start()
    raw = await service.raw()
    await raw.send(b"GET /livez HT")
    assert (await problem(raw))[0] == 408
    assert await raw.closed()


async def test_a_silent_connection_is_closed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_S_MAX", 0.05)
    service = await start()
    assert await (await service.raw()).closed()


@pytest.mark.parametrize(
    "head",
    [
        b"X: " + b"x" * protocol.HEAD_BYTES_MAX,
        b"\r\n".join(b"X-%d: x" % number for number in range(protocol.HEADERS_MAX + 1)),
    ],
)
async def test_a_head_too_large_is_431(service: Service, head: bytes) -> None:
    raw = await service.raw()
    await raw.send(b"GET /livez HTTP/1.1\r\n" + head + b"\r\n\r\n")
    status, headers = await problem(raw)
    assert (status, headers["connection"]) == (431, "close")
    assert await raw.closed()


@pytest.mark.parametrize("part", [b"GET /", b"GET / HTTP/1.1\r\nX: "])
async def test_a_head_without_end_is_431(service: Service, part: bytes) -> None:
    raw = await service.raw()
    await raw.send(part)
    sent = asyncio.create_task(endless(raw))
    assert (await problem(raw))[0] == 431
    await asyncio.gather(sent, return_exceptions=True)


async def endless(raw: Raw, chunk_bytes: int = 4096) -> None:
    for _ in range(1000):
        await raw.send(b"x" * chunk_bytes)


async def test_what_is_no_http_is_a_400_problem(service: Service) -> None:
    raw = await service.raw()
    await raw.send(b"\x16\x03\x01 hello\r\n\r\n")
    assert (await problem(raw))[0] == 400
    assert await raw.closed()


async def test_pipelined_requests_are_answered_in_order(service: Service) -> None:
    raw = await service.raw()
    await raw.send(service.posting(BODY) + b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    assert [(await raw.answer())[0] for _ in range(2)] == [202, 200]


async def test_too_long_a_pipeline_is_cut_after_what_was_taken(service: Service) -> None:
    raw = await service.raw()
    await raw.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
    statuses = [(await raw.answer())[0] for _ in range(protocol.PIPELINE_MAX + 1)]
    assert set(statuses) == {200}
    status, _, body = await raw.answer()
    assert (status, str(protocol.PIPELINE_MAX) in json.loads(body)["detail"]) == (400, True)
    assert await raw.closed()


async def test_garbage_behind_an_order_is_never_taken_for_its_answer(service: Service) -> None:
    raw = await service.raw()
    await raw.send(service.posting(BODY) + b"\x00garbage\r\n\r\n")
    assert (await raw.answer())[0] == 202
    rest = await raw.rest()
    assert rest == b"" or rest.startswith(b"HTTP/1.1 400 ")  # its own, or none
    assert service.ring.depth == 1


async def test_a_connection_asked_to_upgrade_is_answered_and_closed(service: Service) -> None:
    raw = await service.raw()
    await raw.send(
        b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    )
    status, headers, _ = await raw.answer()
    assert (status, headers["connection"]) == (200, "close")
    assert await raw.closed()


async def test_expect_100_continue_is_answered_before_the_body(service: Service) -> None:
    raw = await service.raw()
    whole = service.posting(BODY, headers="Expect: 100-continue\r\n")
    await raw.send(whole[: -len(BODY)])
    assert (await raw.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
    await raw.send(BODY)
    assert (await raw.answer())[0] == 202


async def test_an_idempotency_key_that_is_none_is_400(service: Service) -> None:
    raw = await service.raw()
    await raw.send(service.posting(BODY, headers="Idempotency-Key: a b\r\n"))
    assert (await problem(raw))[0] == 400


async def test_a_broken_body_is_400_although_its_client_waits_to_be_asked_for_it(
    service: Service,
) -> None:
    raw = await service.raw()
    head = "POST /orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    more = "Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\n"
    await raw.send(f"{head}{more}".encode())
    assert (await problem(raw))[0] == 400


async def test_a_mistake_of_ours_is_a_500_problem(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ingest.accept.encode_order", None)
    answer = await service.post(BODY)
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "NoneType" in caplog.text


async def test_the_rest_of_a_body_that_nobody_reads_may_not_come_for_ever(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.exchange.DROPPING_S_MAX", 0.05)
    service = await start()
    raw = await service.raw()
    await raw.send(service.posting(b"x" * 5000, "/nowhere")[:-1])
    assert (await problem(raw))[0] == 404
    assert await raw.closed()


async def test_a_connection_goes_on_after_a_body_that_nobody_read(service: Service) -> None:
    raw = await service.raw()
    whole = service.posting(b"x" * 5000, "/nowhere")
    await raw.send(whole[:-1])
    assert (await problem(raw))[0] == 404
    await raw.send(whole[-1:] + service.posting(BODY))
    assert (await raw.answer())[0] == 202


async def test_a_chunked_body_over_the_cap_is_413_at_once_when_it_is_whole(start: Start) -> None:
    service = await start(max_body_bytes=1000)
    raw = await service.raw()
    head = "POST /orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    await raw.send(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
    await raw.send(b"3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n")
    assert (await problem(raw))[0] == 413
    assert await raw.closed()


async def test_a_body_that_breaks_off_in_garbage_is_400(service: Service) -> None:
    raw = await service.raw()
    head = "POST /orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    await raw.send(f"{head}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\nno length\r\n".encode())
    status, headers = await problem(raw)
    assert (status, headers["connection"]) == (400, "close")
    assert await raw.closed()
    assert service.ring.depth == 0
