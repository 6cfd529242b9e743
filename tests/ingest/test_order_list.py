"""`GET /orders` over HTTP, on both databases."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from processors.paging import encode_cursor
from tests.ingest.test_dead_letters import LOT, die
from tests.postgres import Postgres

if TYPE_CHECKING:
    from tests.ingest.conftest import Service, Start

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["sqlite", "postgresql"])
async def house(request: pytest.FixtureRequest, start: Start) -> Service:
    if request.param == "sqlite":
        return await start()
    template = request.getfixturevalue("migrated")
    server: Postgres = request.getfixturevalue("postgres")
    return await start(database=server.url(server.database(template)))


async def post(service: Service, customer: str = "c", **more: Any) -> str:
    order = {"customer": customer, "lines": [{"sku": "PORK-BELLY", "quantity": "40"}], **more}
    answer = await service.post(json.dumps(order).encode())
    assert answer.status_code == 202
    return str(answer.json()["order_id"])


async def listed(service: Service, query: str = "") -> list[str]:
    """The ids of all pages, by their links."""
    found, link = [], f"/orders?{query}"
    while link:
        page = await service.client.get(link)
        assert page.status_code == 200, page.text
        found += [one["order_id"] for one in page.json()["items"]]
        link = page.links.get("next", {}).get("url", "")
        assert ("cursor=" in link) == (page.json()["next_cursor"] is not None)
    return found


async def test_orders_with_an_outcome_are_listed_as_they_are_shown(house: Service) -> None:
    await house.post(LOT, "/lots")
    ids = [await post(house, reference="R-1", metadata={"a": "b"}) for _ in range(3)]
    assert await listed(house) == []
    house.work_off()
    assert await listed(house, "limit=2") == ids[::-1]
    (newest, *_) = (await house.client.get("/orders")).json()["items"]
    view = (await house.client.get(f"/orders/{ids[2]}")).json()
    assert newest == {name: view[name] for name in view if name != "allocations"}
    assert await listed(house, "status=allocated") == ids[1::-1]
    assert await listed(house, "status=rejected&reference=R-1") == ids[2:]
    assert (await house.client.delete(f"/orders/{ids[0]}")).status_code == 200
    assert await listed(house, "status=cancelled") == ids[:1]
    assert await listed(house) == ids[::-1]  # each where it was


async def test_filters_of_any_text_find_what_bears_it(house: Service) -> None:
    odd = "Ünlü & Söhne 🥓 %_'\"\\"
    ids = [await post(house, odd, reference="a\u0001b"), await post(house), await post(house, odd)]
    for status in ("status=queued&", ""):
        assert await listed(house, f"{status}customer={quote(odd)}&limit=1") == [ids[2], ids[0]]
        assert await listed(house, f"{status}reference=a%01b") == ids[:1]
        assert await listed(house, f"{status}customer=%25") == []
        house.work_off()


async def test_what_waits_and_what_is_worked_on_is_listed_from_memory(service: Service) -> None:
    ids = [await post(service, f"c{number % 2}") for number in range(6)]
    held = service.reader.take(2, 0)
    assert await listed(service, "status=queued&limit=2") == ids[:1:-1]
    assert await listed(service, "status=processing&limit=1") == ids[1::-1]
    assert await listed(service, "status=queued&customer=c1") == [ids[5], ids[3]]
    (first, *_) = (await service.client.get("/orders?status=queued")).json()["items"]
    view = (await service.client.get(f"/orders/{ids[5]}")).json()
    assert first == {name: view[name] for name in view if name != "allocations"}
    assert first["position"] == 3
    service.reader.release(held)
    assert await listed(service, "status=processing") == []


async def test_what_waits_and_can_not_be_read_is_listed_with_what_is_known(
    service: Service,
) -> None:
    assert service.writer.try_put(b"\xc1", b"U" * 16) is not None
    ((shown),) = (await service.client.get("/orders?status=queued")).json()["items"]
    assert (shown["status"], "lines" in shown) == ("queued", False)
    assert await listed(service, "status=queued&customer=c") == []


async def test_the_dead_are_listed_with_their_reason(service: Service) -> None:
    order_id = await die(service)
    ((shown),) = (await service.client.get("/orders?status=dead")).json()["items"]
    assert (shown["order_id"], shown["reason"]) == (order_id, "processor_error")
    assert "ZeroDivisionError" not in json.dumps(shown)


BAD = [
    ("limit=0", "is 0"),
    ("limit=1001", "1000, is 1001"),
    ("status=lost", "is lost"),
    ("status=", "must be one of queued, processing, allocated"),
    ("customer=", "has 0"),
    (f"customer={'x' * 201}", "has 201"),
    ("customer=a%00", "U+0000"),
    (f"reference={'x' * 101}", "has 101"),
    ("reference=%00", "U+0000"),
    ("owner=ann", "owner"),
    ("cursor=bm8", "cursor bm8"),
    ("cursor=", "cursor"),
    (f"cursor={'x' * 300}", "cursor x"),
    ("cursor=%00&status=queued", "cursor"),
]


async def test_a_bad_query_is_422_and_names_the_value(service: Service) -> None:
    for query, named in BAD:
        refused = await service.client.get(f"/orders?{query}")
        assert refused.status_code == 422, query
        assert refused.headers["content-type"] == "application/problem+json"
        assert named in refused.json()["detail"], query


async def test_a_cursor_of_another_status_is_refused(service: Service) -> None:
    await post(service)
    await post(service)
    waiting = (await service.client.get("/orders?status=queued&limit=1")).json()["next_cursor"]
    service.work_off()
    settled = (await service.client.get("/orders?limit=1")).json()["next_cursor"]
    for query in (f"cursor={waiting}", f"cursor={settled}&status=queued"):
        assert (await service.client.get(f"/orders?{query}")).status_code == 422


async def test_a_recall_names_the_orders_and_leads_to_more_of_them(house: Service) -> None:
    lot = {
        "lot_id": "L1",
        "sku": "PORK-BELLY",
        "quantity": "200",
        "expires_at": "2126-01-01T00:00:00Z",
    }
    assert (await house.post(json.dumps(lot).encode(), "/lots")).status_code == 201
    ids = [await post(house, "Funky Foods", reference=f"R-{number}") for number in range(5)]
    house.work_off()
    for _ in range(2):
        recall = await house.post(b"", "/lots/L1/recall?limit=2")
        assert recall.status_code == 200
        content = recall.json()
        assert (content["lot"]["state"], content["lot"]["available"]) == ("recalled", "0")
        assert [one["order_id"] for one in content["orders"]] == [ids[4], ids[3]]
    assert content["orders"][0] == {
        "order_id": ids[4], "customer": "Funky Foods", "reference": "R-4", "quantity": "40",
    }  # fmt: skip
    found, link = [], recall.links["next"]["url"]
    while link:
        page = await house.client.get(link)
        found += [one["order_id"] for one in page.json()["items"]]
        link = page.links.get("next", {}).get("url", "")
    assert found == ids[2::-1]
    assert (await house.client.delete(f"/orders/{ids[0]}")).status_code == 200
    shown = (await house.client.get("/inventory/PORK-BELLY")).json()
    assert (shown["available"], shown["lots"][0]["available"]) == ("0", "40")
    assert shown["lots"][0]["state"] == "recalled"
    late = await post(house)
    house.work_off()
    assert (await house.client.get(f"/orders/{late}")).json()["reason"] == "insufficient_stock"


async def test_a_lot_that_is_not_there_is_404(house: Service) -> None:
    for name in ("nobody", "%00", "%F0%9F%A5%93", "x" * 65):
        for answer in (
            await house.post(b"", f"/lots/{name}/recall"),
            await house.client.get(f"/lots/{name}/orders"),
            await house.post(b'{"delta":"1","reason":"x"}', f"/lots/{name}/adjustments"),
        ):
            assert answer.status_code == 404, name
            assert answer.headers["content-type"] == "application/problem+json"


async def test_what_no_database_can_look_for_is_refused(house: Service) -> None:
    lot_cursor, sku_cursor = encode_cursor((1, 1, 1, "\0")), encode_cursor(("\0",))
    for path, status in (
        ("/lots?sku=%00", 422),
        ("/lots?sku=", 422),
        (f"/lots?cursor={lot_cursor}", 422),
        (f"/inventory?cursor={sku_cursor}", 422),
        ("/inventory/%00", 404),
        ("/dead-letters?reason=%00", 422),
    ):
        assert (await house.client.get(path)).status_code == status, path


async def test_a_bad_query_of_a_recall_is_422(service: Service) -> None:
    await service.post(LOT.replace(b'"sku"', b'"lot_id":"L1","sku"'), "/lots")
    for query in ("limit=0", "x=1", "cursor=bm8"):
        assert (await service.post(b"", f"/lots/L1/recall?{query}")).status_code == 422, query
        assert (await service.client.get(f"/lots/L1/orders?{query}")).status_code == 422, query
