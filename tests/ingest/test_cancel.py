"""`DELETE /orders/{id}` over HTTP."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from processors.audit import run_audit
from tests.ingest.test_dead_letters import LOT, die, replay
from tests.ingest.test_orders import BODY, ID, own, remove_database
from tests.ingest.test_outcomes import waiting

if TYPE_CHECKING:
    from tests.ingest.conftest import Service, Start

pytestmark = pytest.mark.anyio


async def cancel(service: Service, order_id: str = ID) -> Any:
    return await service.client.delete(f"/orders/{order_id}")


async def seen(service: Service, order_id: str = ID) -> Any:
    return (await service.client.get(f"/orders/{order_id}")).json()


async def available(service: Service) -> str:
    view = (await service.client.get("/inventory/PORK-BELLY")).json()
    return str(view["available"])


def is_sound(service: Service) -> None:
    report = run_audit([service.ring], service.store)
    assert report.ok, list(report.lines())


async def test_an_order_that_waits_is_cancelled_at_once_for_everybody(service: Service) -> None:
    await service.post(LOT, "/lots")
    await service.post(own())
    commits = service.ring.commits
    answer = await cancel(service)
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert answer.json() == await seen(service)
    assert service.ring.depth == 1  # it is still there, and nobody is told that it waits
    assert service.ring.commits == commits + 1  # who waits for its outcome is woken
    assert (await service.client.get("/orders?status=queued")).json()["items"] == []
    service.work_off()
    assert answer.json() == await seen(service)
    assert answer.json()["allocations"] == []
    assert await available(service) == "100"
    is_sound(service)


async def test_who_waits_for_its_outcome_is_told_of_its_cancel(service: Service) -> None:
    await service.post(own())
    asked = asyncio.create_task(service.client.get(f"/orders/{ID}?wait=20"))
    await waiting(service, 1)
    answer = await cancel(service)
    assert (await asked).json() == answer.json()
    assert answer.json()["status"] == "cancelled"


async def test_what_is_in_a_hand_is_cancelled_as_long_as_it_has_no_outcome(
    service: Service,
) -> None:
    await service.post(own())
    (item,) = service.reader.take(timeout=0)
    assert (await seen(service))["status"] == "processing"
    assert (await cancel(service)).status_code == 200
    assert (await seen(service))["status"] == "cancelled"
    service.reader.release([item])
    is_sound(service)


async def test_an_allocated_order_gives_its_stock_back_once(service: Service) -> None:
    await service.post(LOT, "/lots")
    await service.post(own())
    service.work_off()
    assert await available(service) == "87.5"
    first, second = [await cancel(service) for _ in range(2)]
    assert (first.status_code, second.status_code) == (200, 200)
    assert first.json() == second.json() == await seen(service)
    assert (first.json()["status"], first.json()["allocations"]) == ("cancelled", [])
    assert await available(service) == "100"
    is_sound(service)


async def test_many_cancels_at_once_are_one(service: Service) -> None:
    await service.post(LOT, "/lots")
    await service.post(own())
    service.work_off()
    answers = await asyncio.gather(*(cancel(service) for _ in range(10)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert await available(service) == "100"
    metrics = (await service.client.get("/metrics")).text
    assert 'rasher_orders_completed_total{outcome="cancelled"} 1.0' in metrics
    is_sound(service)


async def test_a_repeat_of_a_cancelled_order_is_no_new_order(service: Service) -> None:
    await service.post(own())
    await cancel(service)
    waits = await service.post(own())
    service.work_off()
    for again in (waits, await service.post(own())):
        assert (again.status_code, again.headers["idempotency-replayed"]) == (202, "true")
    assert (await service.post(own(quantity="1"))).status_code == 422
    assert service.ring.depth == 0
    assert (await seen(service))["status"] == "cancelled"
    is_sound(service)


async def test_what_is_settled_otherwise_is_409_with_the_reason(service: Service) -> None:
    await service.post(own())
    service.work_off()
    rejected = await cancel(service)
    assert (rejected.status_code, "unknown_sku" in rejected.json()["detail"]) == (409, True)
    dead = await die(service)
    refused = await cancel(service, dead)
    assert (refused.status_code, f"/dead-letters/{dead}" in refused.json()["detail"]) == (409, True)
    await service.client.delete(f"/dead-letters/{dead}")
    refused = await cancel(service, dead)
    assert (refused.status_code, "let go" in refused.json()["detail"]) == (409, True)


async def test_a_replay_that_waits_is_cancelled(service: Service) -> None:
    order_id = await die(service)
    await replay(service, order_id)
    assert (await seen(service, order_id))["status"] == "queued"
    assert (await cancel(service, order_id)).json()["status"] == "cancelled"
    assert (await seen(service, order_id))["status"] == "cancelled"
    assert (await service.client.get("/dead-letters")).json()["items"] == []
    assert (await replay(service, order_id)).status_code == 409
    service.work_off()
    assert (await seen(service, order_id))["status"] == "cancelled"
    is_sound(service)


async def test_a_dead_letter_whose_replay_waits_is_seen_waiting(service: Service) -> None:
    order_id = await die(service)
    await replay(service, order_id)
    assert (await seen(service, order_id))["status"] == "queued"


async def test_what_can_not_be_read_is_409(service: Service) -> None:
    assert service.writer.try_put(b"\xc1", bytes.fromhex(ID.replace("-", ""))) is not None
    refused = await cancel(service)
    assert (refused.status_code, "dead letter" in refused.json()["detail"]) == (409, True)


@pytest.mark.parametrize("name", [ID, "no-uuid", "%00", "%F0%9F%A5%93"])
async def test_what_is_not_there_is_404(service: Service, name: str) -> None:
    answer = await cancel(service, name)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


async def test_while_orders_are_put_back_nothing_is_said_to_be_unknown(service: Service) -> None:
    service.acceptor.recovering = True
    assert (await cancel(service)).status_code == 503
    service.acceptor.recovering = False


async def test_without_a_database_nothing_is_cancelled_and_what_waits_is_seen(
    service: Service,
) -> None:
    await service.post(BODY)
    order_id = (await service.post(BODY)).json()["order_id"]
    remove_database(service)
    assert (await cancel(service, order_id)).status_code == 503
    for _ in range(2):
        assert (await seen(service, order_id))["status"] == "queued"
    waiting = (await service.client.get("/orders?status=queued")).json()["items"]
    assert len(waiting) == 2


async def test_a_cancel_is_503_while_the_database_is_locked(start: Start) -> None:
    service = await start()
    await service.post(own())
    with service.store.writing():
        refused = await cancel(service)
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
    assert (await cancel(service)).status_code == 200
