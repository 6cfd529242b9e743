"""Dead letters over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from processors.pipeline import Outcome, Processor, Work
from processors.schema import parse_uuid
from tests.ingest.test_journaled import HeldSyncer, held, journaled
from tests.ingest.test_orders import BODY, ID, own, remove_database
from tests.processors.kit import settled_by

if TYPE_CHECKING:
    from tests.ingest.conftest import Service, Start

pytestmark = pytest.mark.anyio
__all__ = ["held"]

LOT = b'{"sku":"PORK-BELLY","quantity":"100","expires_at":"2126-01-01T00:00:00Z"}'


def raising() -> Processor:
    def decide(_: Work) -> Outcome:
        raise ZeroDivisionError("bad bacon")

    return settled_by(decide)


async def die(service: Service, body: bytes = BODY) -> str:
    """-> the id of an order that died."""
    order_id: str = (await service.post(body)).json()["order_id"]
    service.work_off(raising())
    return order_id


async def replay(service: Service, order_id: str) -> Any:
    return await service.client.post(f"/dead-letters/{order_id}/replay")


async def test_a_dead_letter_is_shown_with_its_cause(service: Service) -> None:
    order_id = await die(service)
    (shown,) = (await service.client.get("/dead-letters")).json()["items"]
    assert shown == (await service.client.get(f"/dead-letters/{order_id}")).json()
    assert "ZeroDivisionError: bad bacon" in shown.pop("cause")
    assert shown.pop("accepted_at") < shown.pop("died_at")
    assert shown == {
        "order_id": order_id,
        "round": 0,
        "reason": "processor_error",
        "customer": "Funky Foods",
        "reference": None,
        "lines": [{"sku": "PORK-BELLY", "quantity": "12.5"}],
        "attempts": 1,
        "replayable": True,
    }


async def test_pages_of_dead_letters_lead_to_each_other(service: Service) -> None:
    ids = [await die(service) for _ in range(5)]
    found, link = [], "/dead-letters?limit=2&reason=processor_error"
    while link:
        page = await service.client.get(link)
        found += [one["order_id"] for one in page.json()["items"]]
        link = page.links.get("next", {}).get("url", "")
    assert found == ids
    for query in ("limit=0", "cursor=bm8", "status=dead"):
        assert (await service.client.get(f"/dead-letters?{query}")).status_code == 422


async def test_a_replay_is_answered_like_an_order_and_settled_once(service: Service) -> None:
    await service.post(LOT, "/lots")
    order_id = await die(service)
    answer = await replay(service, order_id)
    assert (answer.status_code, answer.headers["location"]) == (202, f"/orders/{order_id}")
    assert answer.json() == {"order_id": order_id, "status": "queued", "position": 0}
    view = (await service.client.get(f"/orders/{order_id}")).json()
    assert view["status"] == "queued"
    service.work_off()
    view = (await service.client.get(f"/orders/{order_id}")).json()
    assert (view["status"], view["reason"]) == ("allocated", None)
    assert (await replay(service, order_id)).status_code == 409
    assert (await service.client.get("/dead-letters")).json()["items"] == []


async def test_a_replay_that_waits_already_is_told_and_not_put_again(service: Service) -> None:
    order_id = await die(service)
    answers = await asyncio.gather(*(replay(service, order_id) for _ in range(8)))
    assert {answer.status_code for answer in answers} == {202}
    repeated = [answer.headers.get("idempotency-replayed") for answer in answers]
    assert sorted(map(str, repeated)) == ["None"] + ["true"] * 7
    assert service.ring.depth == 1


async def test_an_order_that_is_posted_again_finds_its_replay(service: Service) -> None:
    await die(service, own())
    await replay(service, ID)
    again = await service.post(own())
    assert (again.status_code, again.headers["idempotency-replayed"]) == (202, "true")
    assert (await service.post(own(quantity="2"))).status_code == 422
    assert service.ring.depth == 1


async def test_what_is_let_go_is_gone_for_good(service: Service) -> None:
    order_id = await die(service, own())
    path = f"/dead-letters/{order_id}"
    gone = await service.client.delete(path)
    assert (gone.status_code, gone.content) == (204, b"")
    for method, target in (("GET", path), ("DELETE", path), ("POST", f"{path}/replay")):
        assert (await service.client.request(method, target)).status_code == 404
    view = (await service.client.get(f"/orders/{order_id}")).json()
    assert (view["status"], view["reason"], view["customer"]) == ("dead", "discarded", None)
    again = await service.post(own())
    assert (again.status_code, again.headers["idempotency-replayed"]) == (202, "true")
    assert (await service.post(own(quantity="2"))).status_code == 422


async def test_what_is_being_replayed_is_not_let_go(service: Service) -> None:
    order_id = await die(service)
    await replay(service, order_id)
    answer = await service.client.delete(f"/dead-letters/{order_id}")
    assert (answer.status_code, "being replayed" in answer.json()["detail"]) == (409, True)


@pytest.mark.parametrize("name", [ID, "no-uuid", "%00"])
async def test_what_is_no_dead_letter_is_not_found(service: Service, name: str) -> None:
    path = f"/dead-letters/{name}"
    for method, target in (("GET", path), ("DELETE", path), ("POST", f"{path}/replay")):
        answer = await service.client.request(method, target)
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"


async def test_what_lives_is_refused(service: Service) -> None:
    order_id = (await service.post(BODY)).json()["order_id"]
    service.work_off()
    assert (await service.client.delete(f"/dead-letters/{order_id}")).status_code == 409
    assert (await replay(service, order_id)).status_code == 409


async def test_a_replay_waits_for_room_and_then_gets_503(start: Start) -> None:
    service = await start(capacity=1, full_timeout_s=0.1)
    order_id = await die(service)
    await service.post(BODY)
    answer = await replay(service, order_id)
    assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
    assert service.ring.depth == 1


async def test_a_replay_while_draining_gets_503(service: Service) -> None:
    order_id = await die(service)
    service.ring.close()
    assert (await replay(service, order_id)).status_code == 503
    service.ring.reopen()


async def test_without_a_database_nothing_is_replayed(service: Service) -> None:
    order_id = await die(service)
    remove_database(service)
    assert (await replay(service, order_id)).status_code == 503
    assert (await service.client.get("/dead-letters")).status_code == 503
    assert "rasher_dead_letters" not in (await service.client.get("/metrics")).text


async def test_the_metrics_count_dead_letters(service: Service) -> None:
    assert "rasher_dead_letters 0.0" in (await service.client.get("/metrics")).text
    await die(service)
    assert "rasher_dead_letters 1.0" in (await service.client.get("/metrics")).text


async def test_a_replay_is_on_disk_with_its_round_before_it_is_answered(
    start: Start, held: Callable[[], HeldSyncer]
) -> None:
    service = await start(durability="disk")
    held().free = True
    order_id = await die(service)
    held().free = False
    asked = asyncio.create_task(replay(service, order_id))
    await service.until(lambda: held().waiting)
    assert not asked.done()
    held().let_go()
    assert (await asked).status_code == 202
    assert [(item.key, item.round) for item in journaled(service)] == [
        (parse_uuid(order_id), 0),
        (parse_uuid(order_id), 1),
    ]
    held().free = True
