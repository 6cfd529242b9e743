"""`GET /orders/{id}?explain=true`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.ingest.conftest import Service

pytestmark = pytest.mark.anyio

LOT = b'{"lot_id":"%s","sku":"HAM","quantity":"%d","expires_at":"%d-01-01T00:00:00Z"}'


def order(quantity: str) -> bytes:
    return f'{{"customer":"c","lines":[{{"sku":"HAM","quantity":"{quantity}"}}]}}'.encode()


@pytest.fixture
async def stocked(service: Service) -> Service:
    for name, quantity, year in ((b"old", 9, 2001), (b"a", 2, 2090), (b"b", 5, 2091)):
        assert (await service.post(LOT % (name, quantity, year), "/lots")).status_code == 201
    return service


async def test_an_order_is_explained_when_it_is_asked_for(stocked: Service) -> None:
    place = (await stocked.post(order("3"))).headers["location"]
    stocked.work_off()
    plain = (await stocked.client.get(f"{place}?explain=false")).json()
    assert plain == (await stocked.client.get(place)).json()
    answer = await stocked.client.get(f"{place}?explain=true")
    content = answer.json()
    explanation = content.pop("explanation")
    assert content == plain
    assert explanation["detail"] is None
    (line,) = explanation["lines"]
    assert [(lot["lot_id"], lot["used"], lot["why"]) for lot in line["lots"]] == [
        ("old", "0", "expired"),
        ("a", "2", "used_up"),
        ("b", "1", "used"),
    ]
    again = {"if-none-match": answer.headers["etag"]}
    assert (await stocked.client.get(f"{place}?explain=true", headers=again)).status_code == 304


async def test_a_refusal_is_explained_with_what_there_was(stocked: Service) -> None:
    place = (await stocked.post(order("7.001"))).headers["location"]
    stocked.work_off()
    content = (await stocked.client.get(f"{place}?explain=true")).json()
    assert content["reason"] == "insufficient_stock"
    assert content["explanation"] == {"detail": "7.001 of HAM wanted, 7 available", "lines": []}


async def test_what_has_no_outcome_has_no_explanation(stocked: Service) -> None:
    place = (await stocked.post(order("1"))).headers["location"]
    content = (await stocked.client.get(f"{place}?explain=true")).json()
    assert content["status"] == "queued"
    assert "explanation" not in content


async def test_who_waits_for_the_outcome_gets_it_explained(stocked: Service) -> None:
    place = (await stocked.post(order("1"))).headers["location"]
    waiting = asyncio.create_task(stocked.client.get(f"{place}?explain=true&wait=20"))
    await stocked.until(lambda: stocked.outcomes._waiting)
    stocked.work_off()
    content = (await waiting).json()
    assert content["explanation"]["lines"][0]["lots"][1]["why"] == "used"


async def test_what_is_neither_true_nor_false_is_refused(stocked: Service) -> None:
    place = (await stocked.post(order("1"))).headers["location"]
    answer = await stocked.client.get(f"{place}?explain=1")
    assert (answer.status_code, answer.json()["type"]) == (422, "/docs/problems#bad-query")
    assert "explain must be true or false" in answer.json()["detail"]


async def test_an_unknown_order_is_404_explained_or_not(stocked: Service) -> None:
    place = "/orders/00000000-0000-4000-8000-000000000000?explain=true"
    assert (await stocked.client.get(place)).status_code == 404
