"""A full ring: waiting, its order, its end, and what hanging up leaves."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from processors.schema import load_order

if TYPE_CHECKING:
    from tests.ingest.conftest import Raw, Service, Start

pytestmark = pytest.mark.anyio


def body(customer: str) -> bytes:
    return f'{{"customer":"{customer}","lines":[{{"sku":"A","quantity":"1"}}]}}'.encode()


async def waiting_posts(service: Service, count: int, first: int = 0) -> list[Raw]:
    """Posts that wait, parked in the order of their numbers."""
    already = service.writer.parked
    raws = []
    for number in range(first, first + count):
        raw = await service.raw()
        await raw.send(service.posting(body(f"w{number}")))
        raws.append(raw)
        await service.parked(already + number - first + 1)
    return raws


def customers(service: Service) -> list[str]:
    """Takes all there is."""
    items = []
    while service.ring.depth:
        taken = service.reader.take(timeout=0)
        service.reader.release(taken)
        items += taken
    assert [item.sequence for item in items] == sorted(item.sequence for item in items)
    return [load_order(item.payload).customer for item in items]


async def all_customers(service: Service, count: int) -> list[str]:
    """Takes as they come, until there were that many."""
    seen: list[str] = []

    def enough() -> bool:
        seen.extend(customers(service))
        return len(seen) >= count

    await service.until(enough)
    return seen


async def test_a_full_ring_makes_a_post_wait_until_there_is_room(start: Start) -> None:
    service = await start(capacity=1)
    assert (await service.post(body("in"))).status_code == 202
    (raw,) = await waiting_posts(service, 1)
    assert customers(service) == ["in"]
    status, _, _ = await raw.answer()
    assert status == 202
    assert customers(service) == ["w0"]


async def test_waiting_posts_are_served_in_the_order_of_their_arrival(start: Start) -> None:
    service = await start(capacity=1)
    await service.post(body("in"))
    raws = await waiting_posts(service, 12)
    seen = await all_customers(service, 13)
    assert seen == ["in", *(f"w{number}" for number in range(12))]
    assert {(await raw.answer())[0] for raw in raws} == {202}


async def test_a_client_that_hangs_up_while_waiting_leaves_nothing(start: Start) -> None:
    service = await start(capacity=1)
    await service.post(body("in"))
    raws = await waiting_posts(service, 3)
    await raws[1].hang_up()
    await service.parked(2)
    seen = await all_customers(service, 3)
    assert seen == ["in", "w0", "w2"]
    assert [(await raws[number].answer())[0] for number in (0, 2)] == [202, 202]
    assert service.ring.tail == 3


async def test_many_waiting_posts_add_one_task_each_and_no_thread(start: Start) -> None:
    service = await start(capacity=1)
    await service.post(body("in"))
    first = await waiting_posts(service, 1)
    tasks = len(asyncio.all_tasks())
    threads = threading.active_count()
    more = await waiting_posts(service, 50, first=1)
    assert len(asyncio.all_tasks()) - tasks == 50
    assert threading.active_count() == threads
    for raw in first + more:
        await raw.hang_up()
    await service.parked(0)


async def test_a_post_that_found_no_room_in_time_is_503_and_never_appears(start: Start) -> None:
    service = await start(capacity=1, full_timeout_s=0.1)
    await service.post(body("in"))
    refused = await service.post(body("late"))
    assert refused.status_code == 503
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.headers["content-type"] == "application/problem+json"
    assert "--full-timeout" in refused.json()["detail"]
    assert service.writer.parked == 0
    assert customers(service) == ["in"]


async def test_a_closed_ring_is_503_and_closes_the_connection(start: Start) -> None:
    service = await start(capacity=1)
    await service.post(body("in"))
    (raw,) = await waiting_posts(service, 1)
    service.ring.close()
    for status, headers, _ in [await raw.answer()]:
        assert status == 503
        assert headers["connection"] == "close"
        assert "retry-after" in headers
    assert await raw.closed()
    refused = await service.post(body("late"))
    assert (refused.status_code, refused.headers["connection"]) == (503, "close")
    assert (await service.client.get("/readyz")).status_code == 503
    assert customers(service) == ["in"]


async def test_nobody_overtakes_those_who_wait(start: Start) -> None:
    service = await start(capacity=2)
    await service.post(body("a"))
    await service.post(body("b"))
    raws = await waiting_posts(service, 2)
    # Two leave; before the loop runs, a third post is already on its way.
    late = await service.raw()
    await late.send(service.posting(body("late")))
    await service.parked(3)
    seen = await all_customers(service, 5)
    assert seen == ["a", "b", "w0", "w1", "late"]
    assert {(await raw.answer())[0] for raw in [*raws, late]} == {202}


async def test_a_repeat_of_a_waiting_order_waits_for_its_fate(start: Start) -> None:
    service = await start(capacity=1)
    await service.post(body("in"))
    order_id = '{"order_id":"01937a3e-5b1c-7cc0-8000-0123456789ab",'
    posted = order_id.encode() + body("own")[1:]
    first, repeat = await service.raw(), await service.raw()
    await first.send(service.posting(posted))
    await service.parked(1)
    await repeat.send(service.posting(posted))
    await first.hang_up()
    await service.until(lambda: len(service.server.server_state.connections) == 2)
    await service.parked(1)
    assert customers(service) == ["in"]
    status, headers, _ = await repeat.answer()
    assert (status, headers.get("idempotency-replayed")) == (202, None)
    assert customers(service) == ["own"]


async def test_without_a_full_timeout_a_full_ring_is_503_at_once(start: Start) -> None:
    service = await start(capacity=2, full_timeout_s=0.0)
    own_id = b'{"order_id":"01937a3e-5b1c-7cc0-8000-0123456789ab",'
    assert (await service.post(own_id + body("own")[1:])).status_code == 202
    assert (await service.post(body("in"))).status_code == 202
    assert (await service.post(body("late"))).status_code == 503
    assert customers(service) == ["own", "in"]
