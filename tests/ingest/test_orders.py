"""`POST /orders` and `GET /orders/{id}` over real sockets."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from processors.orders import find_order
from processors.schema import load_order, parse_uuid

if TYPE_CHECKING:
    from tests.ingest.conftest import Service, Start

pytestmark = pytest.mark.anyio

BODY = b'{"customer":"Funky Foods","lines":[{"sku":"PORK-BELLY","quantity":"12.5"}]}'
ID = "01937a3e-5b1c-7cc0-8000-0123456789ab"


def own(order_id: str = ID, quantity: str = "12.5") -> bytes:
    return (
        f'{{"order_id":"{order_id}","customer":"Funky Foods",'
        f'"lines":[{{"sku":"PORK-BELLY","quantity":"{quantity}"}}]}}'
    ).encode()


def remove_database(service: Service) -> None:
    """The database can't be asked any more."""
    service.store.close()
    with service.store.engine.connect() as connection:
        name = connection.execute(sa.text("PRAGMA database_list")).one().file
    service.store.close()
    with Path(name).open("r+b") as file:
        file.write(b"this is no database" * 1000)


async def test_an_order_is_answered_202_with_its_place(service: Service) -> None:
    first = await service.post(BODY)
    second = await service.post(BODY)
    assert first.status_code == 202
    assert first.json() == {
        "order_id": first.json()["order_id"],
        "status": "queued",
        "position": 0,
    }
    assert second.json()["position"] == 1
    assert first.headers["location"] == f"/orders/{first.json()['order_id']}"
    assert first.headers["content-type"] == "application/json"
    assert "server" not in first.headers


async def test_the_order_lies_in_the_ring_under_its_id(service: Service) -> None:
    answer = await service.post(own())
    (item,) = service.reader.take(timeout=0)
    assert uuid.UUID(bytes=item.key) == uuid.UUID(answer.json()["order_id"]) == uuid.UUID(ID)
    order = load_order(item.payload)
    assert (order.customer, order.lines[0].thousandths) == ("Funky Foods", 12500)


async def test_an_order_without_an_id_gets_a_uuid7(service: Service) -> None:
    ids = [uuid.UUID((await service.post(BODY)).json()["order_id"]) for _ in range(5)]
    assert {one.version for one in ids} == {7}
    assert ids == sorted(set(ids))


async def test_a_repeat_is_answered_as_the_first_was_and_put_once(service: Service) -> None:
    first = await service.post(own())
    repeat = await service.post(own(ID.upper()))
    assert repeat.status_code == 202
    assert repeat.json() == first.json()
    assert repeat.headers["location"] == first.headers["location"]
    assert repeat.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    assert service.ring.depth == 1


async def test_the_same_id_with_another_body_is_refused(service: Service) -> None:
    await service.post(own())
    other = await service.post(own(quantity="12.501"))
    assert other.status_code == 422
    assert other.headers["content-type"] == "application/problem+json"
    assert ID in other.json()["detail"]
    assert service.ring.depth == 1


async def test_a_repeat_is_found_in_a_hand(service: Service) -> None:
    await service.post(own())
    service.reader.take(timeout=0)
    repeat = await service.post(own())
    assert (repeat.status_code, repeat.json()["status"]) == (202, "processing")
    assert (await service.post(own(quantity="1"))).status_code == 422
    assert service.ring.depth == 0


async def test_posts_of_one_id_at_once_are_put_once(service: Service) -> None:
    answers = await asyncio.gather(*(service.post(own()) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {202}
    assert sum("idempotency-replayed" in answer.headers for answer in answers) == 19
    assert service.ring.depth == 1


async def test_an_own_id_is_503_when_the_database_cannot_be_asked(service: Service) -> None:
    remove_database(service)
    refused = await service.post(own())
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert service.ring.depth == 0
    assert (await service.post(BODY)).status_code == 202


async def test_an_order_too_large_for_a_slot_is_413_with_size_limit_and_flag(start: Start) -> None:
    service = await start(slot_bytes=128)
    body = BODY.replace(b"Funky", b"F" * 100)
    refused = await service.post(body)
    assert refused.status_code == 413
    detail = refused.json()["detail"]
    assert "64" in detail
    assert "--slot-bytes 128" in detail
    assert service.ring.depth == 0


async def test_a_queued_order_is_shown_with_its_place(service: Service) -> None:
    await service.post(BODY)
    await service.post(own())
    shown = await service.client.get(f"/orders/{ID}")
    assert shown.status_code == 200
    content = shown.json()
    assert (content["status"], content["position"]) == ("queued", 1)
    assert content["lines"] == [{"sku": "PORK-BELLY", "quantity": "12.5"}]
    assert content["timings"]["accepted"].endswith("Z")


async def test_a_taken_order_is_shown_as_processing(service: Service) -> None:
    await service.post(own())
    service.reader.take(timeout=0)
    content = (await service.client.get(f"/orders/{ID}")).json()
    assert content["status"] == "processing"
    assert "position" not in content


async def test_an_order_in_flight_is_shown_while_the_database_is_away(service: Service) -> None:
    await service.post(own())
    remove_database(service)
    assert (await service.client.get(f"/orders/{ID}")).status_code == 200
    away = await service.client.get(f"/orders/{ID[:-1]}0")
    assert away.status_code == 503
    assert "retry-after" in away.headers


@pytest.mark.parametrize("order_id", [ID, "nonsense", ID.replace("-", ""), "%ff", "a" * 5000])
async def test_an_unknown_order_is_404(service: Service, order_id: str) -> None:
    unknown = await service.client.get(f"/orders/{order_id}")
    assert unknown.status_code == 404
    assert unknown.headers["content-type"] == "application/problem+json"
    assert len(unknown.content) < 1000


async def test_an_order_unchanged_is_304_for_its_etag(service: Service) -> None:
    await service.post(own())
    first = await service.client.get(f"/orders/{ID}")
    known = {"if-none-match": f'"other", W/{first.headers["etag"]}'}
    assert (await service.client.get(f"/orders/{ID}", headers=known)).status_code == 304
    service.reader.take(timeout=0)
    changed = await service.client.get(f"/orders/{ID}", headers=known)
    assert changed.status_code == 200
    assert changed.headers["etag"] != first.headers["etag"]


async def test_a_committed_order_is_shown_and_repeated_from_the_database(service: Service) -> None:
    await service.post(own())
    service.work_off()
    key = parse_uuid(ID)
    assert key is not None
    assert find_order(service.store, key) is not None
    assert service.ring.find(key) is None
    content = (await service.client.get(f"/orders/{ID}")).json()
    assert (content["status"], content["reason"]) == ("rejected", "unknown_sku")
    repeat = await service.post(own())
    assert (repeat.status_code, repeat.json()["status"]) == (202, "rejected")
    assert repeat.headers["idempotency-replayed"] == "true"
    assert (await service.post(own(quantity="1"))).status_code == 422
    assert service.ring.depth == 0
