"""What is in flight is asked about together, and never waited for long."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest

from ingest import flight
from ingest.flight import Flight, identity
from processors.known import Known
from ringbuf import Identity
from tests.ingest.test_orders import BODY, remove_database

if TYPE_CHECKING:
    from tests.ingest.conftest import Service

pytestmark = pytest.mark.anyio


class Counted(Known):
    """Holds its first question up until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []
        self.free = threading.Event()

    def of(self, connection: object, identities: Sequence[Identity]) -> set[Identity]:
        self.asked.append(len(identities))
        assert self.free.wait(20)
        return super().of(connection, identities)  # type: ignore[arg-type]


async def test_who_comes_while_one_asks_is_in_the_next_question(service: Service) -> None:
    for _ in range(7):
        await service.post(BODY)
    waiting = service.ring.snapshot().waiting
    asks, known = Flight(service.database), Counted()
    asks._known = known
    first = asyncio.create_task(asks.settled(waiting[:1]))
    await service.until(lambda: known.asked)
    others = [asyncio.create_task(asks.settled([item])) for item in waiting]
    await service.until(lambda: len(asks._waiting) == len(others))
    known.free.set()
    assert await first == set()
    assert await asyncio.gather(*others) == [set()] * 7
    assert known.asked == [1, 7]


async def test_only_those_that_were_asked_for_are_told(service: Service) -> None:
    ids = [(await service.post(BODY)).json()["order_id"] for _ in range(2)]
    waiting = service.ring.snapshot().waiting
    assert (await service.client.delete(f"/orders/{ids[0]}")).status_code == 200
    asks = Flight(service.database)
    told = await asyncio.gather(*(asks.settled([item]) for item in waiting))
    assert told == [{identity(waiting[0])}, set()]


async def test_a_database_that_is_silent_is_not_waited_for_twice(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flight, "ASKED_S_MAX", 0.05)
    monkeypatch.setattr(flight, "AWAY_S", 1000.0)
    await service.post(BODY)
    waiting = service.ring.snapshot().waiting
    asks, known = Flight(service.database), Counted()
    asks._known = known
    for _ in range(3):
        assert await asks.settled(waiting) == set()
    assert known.asked == [1]
    known.free.set()
    await service.until(lambda: asks._asking is None)


async def test_a_database_that_is_away_is_no_error(service: Service) -> None:
    await service.post(BODY)
    waiting = service.ring.snapshot().waiting
    remove_database(service)
    assert await Flight(service.database).settled(waiting) == set()
