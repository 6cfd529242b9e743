"""A request's names go with its order, to its row, its log lines and every answer."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from ingest.answers import Refused
from ingest.origin import NAMELESS, REQUEST_ID_CHARACTERS_MAX, make_origin, read_names
from processors.dead_letters import Revival, revive
from processors.logs import JsonFormatter, TextFormatter, about, of_order
from processors.pipeline import Work
from processors.schema import load_header, parse_uuid
from processors.tables import orders
from tests.ingest.test_orders import BODY, ID, own

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.ingest.conftest import Service, Start

pytestmark = pytest.mark.anyio
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NAMED = {"x-request-id": "web-17", "traceparent": TRACE, "content-type": "application/json"}


@pytest.mark.parametrize("lane", ["on", "off"])
async def test_names_go_through_the_ring_to_the_row(start: Start, lane: str) -> None:
    service = await start(lane=lane)
    for body in (BODY, own()):
        answer = await service.client.post("/orders", content=body, headers=NAMED)
        assert (answer.status_code, answer.headers["x-request-id"]) == (202, "web-17")
    for waiting in service.ring.snapshot().waiting:
        assert load_header(waiting.header).request_id == "web-17"
    service.work_off()
    columns = orders.c.owner, orders.c.request_id, orders.c.traceparent
    with service.store.reading() as connection:
        rows = connection.execute(sa.select(*columns)).all()
    assert rows == [(None, "web-17", TRACE)] * 2


@pytest.mark.parametrize("lane", ["on", "off"])
async def test_every_answer_repeats_the_id(start: Start, lane: str) -> None:
    service = await start(lane=lane)
    named = {"x-request-id": "r"}
    for method, path, body in [
        ("GET", "/livez", b""), ("GET", "/nothing", b""), ("PUT", "/orders", b""),
        ("POST", "/orders", b"{"), ("POST", "/lots", b"[]"), ("GET", f"/orders/{ID}", b""),
    ]:  # fmt: skip
        kind = {"content-type": "application/json"}
        answer = await service.client.request(method, path, content=body, headers=named | kind)
        assert answer.headers.get_list("x-request-id") == ["r"], (method, path)


@pytest.mark.parametrize("lane", ["on", "off"])
@pytest.mark.parametrize("size", [0, 1, 127, 128, 129])
async def test_a_request_id_has_1_to_128_characters(start: Start, lane: str, size: int) -> None:
    service = await start(lane=lane)
    raw = await service.raw()
    await raw.send(service.posting(BODY, headers=f"X-Request-ID: {'x' * size}\r\n"))
    status, headers, body = await raw.answer()
    if 1 <= size <= REQUEST_ID_CHARACTERS_MAX:
        assert (status, headers["x-request-id"]) == (202, "x" * size)
    else:
        assert (status, headers.get("x-request-id")) == (400, None)
        assert f"has {size}" in json.loads(body)["detail"]


@pytest.mark.parametrize(
    "value",
    [
        TRACE.upper(), TRACE[:-1], TRACE + "-01", "ff" + TRACE[2:], "", "x",
        TRACE.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32),
        TRACE.replace("b7ad6b7169203331", "0" * 16),
    ],
)  # fmt: skip
def test_a_traceparent_that_is_not_valid_is_ignored(value: str) -> None:
    assert read_names(None, value.encode()) == NAMELESS


def test_a_traceparent_of_a_later_version_is_kept_as_far_as_it_is_known() -> None:
    later = "01" + TRACE[2:]
    assert read_names(None, later.encode() + b"-more").traceparent == later
    assert read_names(None, later.encode()).traceparent == later


@pytest.mark.parametrize("value", [b"a b", b"a\x7f", b"\xe4", b"a\tb"])
def test_a_request_id_is_visible_ascii(value: bytes) -> None:
    with pytest.raises(Refused):
        read_names(value, None)


def test_who_says_nothing_costs_no_header() -> None:
    assert make_origin(None).header == b""
    assert load_header(make_origin("shop").header).owner == "shop"


async def test_a_dead_letter_is_replayed_with_its_names(service: Service) -> None:
    def broken(_connection: sa.Connection, _orders: Sequence[Work], _now: int, /) -> list[None]:
        raise RuntimeError

    await service.client.post("/orders", content=own(), headers=NAMED)
    service.work_off(broken)  # type: ignore[arg-type]
    key = parse_uuid(ID)
    assert key is not None
    revival = revive(service.store, key)
    assert isinstance(revival, Revival)
    header = load_header(revival.header)
    assert (header.request_id, header.traceparent) == ("web-17", TRACE)


async def test_lines_about_an_order_and_about_a_request_name_them(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_connection: sa.Connection, _orders: Sequence[Work], _now: int, /) -> list[None]:
        raise RuntimeError

    await service.client.post("/orders", content=own(), headers=NAMED)
    service.work_off(broken)  # type: ignore[arg-type]
    (line,) = [one for one in caplog.records if "is dead" in one.message]
    fields = json.loads(JsonFormatter("worker 0").format(line))
    assert fields["order_id"] == ID
    assert fields["request_id"] == "web-17"
    assert fields["trace_id"] == TRACE[3:35]
    assert "request_id=web-17" in TextFormatter("worker 0").format(line)


def test_a_line_within_a_request_bears_its_names_and_none_after_it() -> None:
    line = logging.LogRecord("a", logging.ERROR, "file", 1, "what", (), None)
    with about("web-17", None):
        assert json.loads(JsonFormatter("front 0").format(line))["request_id"] == "web-17"
    assert "request_id" not in json.loads(JsonFormatter("front 0").format(line))
    assert of_order(None, None, None) == {"about": {}}
