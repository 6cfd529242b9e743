"""A front before PostgreSQL: what it asks the database for."""

from __future__ import annotations

import json
from uuid import uuid4

import pytest

from processors.store import migrate
from tests.ingest.conftest import Service, Start
from tests.postgres import Postgres

pytestmark = pytest.mark.anyio


def order(order_id: str | None = None, quantity: str = "1.5", **members: str) -> bytes:
    body = {"customer": "Funky Foods", "lines": [{"sku": "BELLY", "quantity": quantity}], **members}
    return json.dumps(body | ({"order_id": order_id} if order_id else {})).encode()


async def stocked(start: Start, server: Postgres) -> Service:
    url = server.url(server.database())
    migrate(url)
    service = await start(database=url)
    lot = {"lot_id": "L1", "sku": "BELLY", "quantity": "10", "expires_at": "2126-01-01T00:00:00Z"}
    assert (await service.post(json.dumps(lot).encode(), "/lots")).status_code == 201
    assert (await service.post(json.dumps(lot).encode(), "/lots")).status_code == 200
    other = json.dumps(lot | {"quantity": "9"}).encode()
    assert (await service.post(other, "/lots")).status_code == 409
    return service


async def test_an_order_is_taken_settled_and_found_and_stock_is_shown(
    start: Start, postgres: Postgres
) -> None:
    service = await stocked(start, postgres)
    taken = await service.post(order(reference="a\u0001"))
    assert taken.status_code == 202
    service.work_off()
    found = (await service.client.get(taken.headers["location"])).json()
    assert (found["status"], found["reference"]) == ("allocated", "a\u0001")
    assert [one["lot_id"] for one in found["allocations"]] == ["L1"]
    shown = (await service.client.get("/inventory/BELLY")).json()
    assert shown["available"] == "8.5"
    body = json.dumps({"delta": "-0.5", "reason": "spoilage"}).encode()
    assert (await service.post(body, "/lots/L1/adjustments")).status_code == 201
    assert (await service.client.get("/inventory/BELLY")).json()["available"] == "8"


async def test_a_repeat_is_compared_with_what_the_database_has(
    start: Start, postgres: Postgres
) -> None:
    service = await stocked(start, postgres)
    order_id = str(uuid4())
    assert (await service.post(order(order_id))).status_code == 202
    service.work_off()
    assert (await service.post(order(order_id))).status_code == 202
    assert (await service.post(order(order_id, "2"))).status_code == 422
    service.work_off()
    assert (await service.client.get("/inventory/BELLY")).json()["available"] == "8.5"


async def test_a_reference_that_can_not_be_stored_is_refused_before_it_is_taken(
    start: Start, postgres: Postgres
) -> None:
    service = await stocked(start, postgres)
    refused = await service.post(order(reference="a\0"))
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "/reference"


async def test_with_the_database_away_only_what_must_be_compared_is_refused(
    start: Start, own_postgres: Postgres
) -> None:
    service = await stocked(start, own_postgres)
    own_postgres.stop()
    taken = await service.post(order())
    assert taken.status_code == 202
    assert (await service.post(order(str(uuid4())))).status_code == 503
    assert (await service.client.get(taken.headers["location"])).json()["status"] == "queued"
    assert (await service.client.get(f"/orders/{uuid4()}")).status_code == 503
    assert (await service.client.get("/readyz")).json()["degraded"] == ["database"]
    own_postgres.start()
    assert (await service.client.get(f"/orders/{uuid4()}")).status_code == 404
    assert (await service.client.get("/readyz")).json()["degraded"] == []
    service.work_off()
    assert (await service.client.get(taken.headers["location"])).json()["status"] == "allocated"
