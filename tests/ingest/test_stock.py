"""Lots, adjustments and inventory over HTTP."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.ingest.conftest import Service

pytestmark = pytest.mark.anyio

LOT = {"lot_id": "L1", "sku": "A", "quantity": "10.5", "expires_at": "2099-01-01T00:00:00Z"}


async def post_lot(service: Service, **changes: Any) -> Any:
    return await service.post(json.dumps({**LOT, **changes}).encode(), "/lots")


async def test_a_lot_is_created_with_its_location(service: Service) -> None:
    answer = await post_lot(service)
    assert answer.status_code == 201
    assert answer.headers["location"] == "/lots/L1"
    assert answer.json()["available"] == "10.5"
    assert answer.json()["expires_at"] == "2099-01-01T00:00:00.000000Z"


async def test_the_same_lot_again_is_200_and_another_body_409(service: Service) -> None:
    await post_lot(service)
    again = await post_lot(service, quantity=10.5)
    assert (again.status_code, again.headers["location"]) == (200, "/lots/L1")
    conflict = await post_lot(service, quantity="11")
    assert conflict.status_code == 409
    assert conflict.headers["content-type"] == "application/problem+json"


async def test_a_lot_without_an_id_gets_one(service: Service) -> None:
    answer = await service.post(
        b'{"sku":"A","quantity":1,"expires_at":"2099-01-01T00:00:00+02:00"}', "/lots"
    )
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/lots/{answer.json()['lot_id']}"


async def test_a_bad_lot_is_told_every_field(service: Service) -> None:
    refused = await service.post(
        b'{"quantity":0,"expires_at":"2099-01-01T00:00:00","received_at":1,"supplier":"\\u0007"}',
        "/lots",
    )
    assert refused.status_code == 422
    pointers = [error["pointer"] for error in refused.json()["errors"]]
    assert pointers == ["/sku", "/quantity", "/expires_at", "/received_at", "/supplier"]


async def test_an_adjustment_moves_the_balance(service: Service) -> None:
    await post_lot(service)
    path = "/lots/L1/adjustments"
    down = await service.post(b'{"delta":"-10.25","reason":"spoilage"}', path)
    assert (down.status_code, down.json()) == (201, {"lot_id": "L1", "available": "0.25"})
    refused = await service.post(b'{"delta":"-0.251","reason":"spoilage"}', path)
    assert refused.status_code == 409
    assert "0.25" in refused.json()["detail"]
    assert (await service.post(b'{"delta":0,"reason":"x"}', path)).status_code == 422
    unknown = await service.post(b'{"delta":1,"reason":"x"}', "/lots/other/adjustments")
    assert unknown.status_code == 404


async def test_inventory_lists_lots_in_the_order_of_use(service: Service) -> None:
    await post_lot(service)
    await post_lot(service, lot_id="L0", expires_at="2098-01-01T00:00:00Z")
    await post_lot(service, lot_id="old", expires_at="2001-01-01T00:00:00Z")
    shown = (await service.client.get("/inventory/A")).json()
    assert shown["available"] == "21"
    assert [lot["lot_id"] for lot in shown["lots"]] == ["old", "L0", "L1"]
    assert (await service.client.get("/inventory")).json()["items"] == [shown]
    assert (await service.client.get("/inventory/B")).status_code == 404


async def test_pages_lead_to_all_lots_by_their_links(service: Service) -> None:
    for number in range(5):
        await post_lot(service, lot_id=f"L{number}")
    url, seen = "/lots?limit=2&sku=A", []
    for _ in range(3):
        page = await service.client.get(url)
        seen += [lot["lot_id"] for lot in page.json()["items"]]
        link = page.links.get("next", {})
        url = link.get("url", "")
    assert seen == [f"L{number}" for number in range(5)]
    assert url == ""


async def test_lots_are_listed_by_their_state(service: Service) -> None:
    await post_lot(service)
    await post_lot(service, lot_id="old", expires_at="2001-01-01T00:00:00Z")
    for state, ids in {"available": ["L1"], "expired": ["old"], "spent": [], "": None}.items():
        answer = await service.client.get(f"/lots?sku=A&state={state}")
        if ids is None:
            assert answer.status_code == 422
            told = "state must be one of available, expired, spent, recalled, is "
            assert answer.json()["detail"] == told
        else:
            assert [lot["lot_id"] for lot in answer.json()["items"]] == ids
    page = await service.client.get("/lots?state=available&limit=1")
    assert "next" not in page.links
    await post_lot(service, lot_id="L2")
    page = await service.client.get("/lots?state=available&limit=1")
    assert "state=available" in page.links["next"]["url"]


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=x",
        "limit=",
        "limit=%C2%B2",
        "cursor=!",
        "cursor=AAAA",
        "x=1",
        "limit=1&limit=0",
    ],
)
async def test_a_bad_query_is_422(service: Service, query: str) -> None:
    for path in ("/lots", "/inventory"):
        refused = await service.client.get(f"{path}?{query}")
        assert refused.status_code == 422
        assert refused.headers["content-type"] == "application/problem+json"


async def test_stock_is_503_while_the_database_is_locked(service: Service) -> None:
    await post_lot(service)
    with service.store.writing():
        locked = await post_lot(service, lot_id="L2")
        assert locked.status_code == 503
        assert int(locked.headers["retry-after"]) >= 1
        assert (await service.client.get("/inventory/A")).status_code == 200
    assert (await post_lot(service, lot_id="L2")).status_code == 201
