"""Random stories: orders that die and are replayed, partners in any mood, a relay that is killed.

After each chapter the audit passes. Whenever a partner hears of an outcome of an order it has taken
the one before; at the end it has heard of all.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from uuid import uuid4

import pytest

from processors import attempts
from processors.delivery_list import enable, resend
from processors.pipeline import Outcome
from processors.relay import Relay
from processors.schema import Line, Order, RecordHeader, body_hash, encode_header, encode_order
from processors.webhooks import Endpoint, event_id, shown_id
from tests.partners import FAILS, GONE, OK, Message, partner, until
from tests.processors.kit import House, on_postgresql, on_sqlite, settled_by
from tests.processors.test_relay import (
    _quick,  # noqa: F401 - a fixture
    anyio_backend,  # noqa: F401 - a fixture
    endpoint,
    relaying,
)

pytestmark = pytest.mark.anyio

PAYLOAD = encode_order(Order("Funky Foods", [Line("BELLY", 1000)]))
HEADER = encode_header(RecordHeader(body_hash(PAYLOAD)))
NAMES = ("shop", "bank")
CHAPTERS, STEPS = 6, 12


class Orders:
    """Of one house: each dies, and is replayed, until it is rejected."""

    def __init__(self, house: House, rng: random.Random) -> None:
        self.house, self.rng = house, rng
        self.dead: dict[bytes, int] = {}
        self.before: dict[str, str | None] = {}  # of each event the one of its order before it

    def go_on(self) -> None:
        """A new one, or the next round of one that died."""
        key = uuid4().bytes
        if self.dead and self.rng.random() < 0.7:
            key = self.rng.choice(list(self.dead))
        number, dies = self.dead.pop(key, -1) + 1, self.rng.random() < 0.7
        before = shown_id(event_id(key, number - 1)) if number else None
        self.before[shown_id(event_id(key, number))] = before
        if dies:
            self.dead[key] = number

        def settle(_: object) -> Outcome:
            if dies:
                raise ValueError("no")
            return Outcome.rejected("closed")

        assert self.house.writer.try_put(PAYLOAD, key, HEADER, number) is not None
        self.house.work(settled_by(settle))


class Moody:
    """A partner that answers as it likes, and minds the order."""

    def __init__(self, orders: Orders, rng: random.Random) -> None:
        self.orders, self.rng = orders, rng
        self.well = False
        self.taken: set[str | None] = {None}
        self.early: list[str] = []

    async def answer(self, message: Message, _writer: asyncio.StreamWriter) -> bytes:
        if self.orders.before[message.id] not in self.taken:
            self.early.append(message.id)
        mood = 0.0 if self.well else self.rng.random()
        if 0.8 < mood < 0.85:
            await asyncio.sleep(3600)
        if mood > 0.85:
            raise ConnectionResetError
        if mood > 0.6:
            return FAILS if mood < 0.77 else GONE
        self.taken.add(message.id)
        return OK


@asynccontextmanager
async def killed_at_the_end(house: House, *wanted: Endpoint) -> AsyncIterator[None]:
    """A relay; what it is doing then is not done, but a commit that was under way."""
    with ThreadPoolExecutor(6) as threads:
        asyncio.get_running_loop().set_default_executor(threads)
        task = asyncio.create_task(Relay(house.store, house.ring, wanted).run())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(6))


async def step(house: House, orders: Orders, rng: random.Random) -> None:
    """Something happens."""
    chance = rng.random()
    if chance < 0.7:
        await asyncio.to_thread(orders.go_on)
    elif chance < 0.8:
        (last,) = house.rows("SELECT coalesce(max(id), 0) FROM deliveries")
        await asyncio.to_thread(house.store.commit, resend, rng.randint(1, last[0] + 1))
    elif chance < 0.9:
        await asyncio.to_thread(house.store.commit, enable, rng.choice(NAMES))
    else:
        await asyncio.sleep(rng.random() * 0.1)


def is_sound(house: House) -> None:
    report = house.audit()
    assert report.ok, list(report.lines())


def states(house: House) -> set[str]:
    return {row[0] for row in house.rows("SELECT DISTINCT state FROM deliveries")}


async def tell(house: House, seed: int) -> None:
    rng = random.Random(seed)
    orders = Orders(house, rng)
    async with AsyncExitStack() as stack:
        moods = [Moody(orders, rng) for _ in NAMES]
        partners = [await stack.enter_async_context(partner(one.answer)) for one in moods]
        wanted = [endpoint(one, name) for one, name in zip(partners, NAMES, strict=True)]
        async with relaying(house, *wanted):
            pass  # they are known from here on
        for _ in range(CHAPTERS):
            async with killed_at_the_end(house, *wanted):
                for _ in range(rng.randint(1, STEPS)):
                    await step(house, orders, rng)
            is_sound(house)
        for one, name in zip(moods, NAMES, strict=True):
            one.well = True
            house.store.commit(enable, name)
        async with relaying(house, *wanted):
            await until(lambda: all(one.taken > orders.before.keys() for one in moods))
            await until(lambda: states(house) <= {"delivered"})
        is_sound(house)
        assert [one.early for one in moods] == [[], []]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "ATTEMPT_S", 0.1)
    monkeypatch.setattr(attempts, "PAUSES_S", (0.01,))
    monkeypatch.setattr(attempts.Breaker, "OPEN_S_MIN", 0.01)
    monkeypatch.setattr(attempts.Breaker, "OPEN_S_MAX", 0.05)


def seeds(suite: int, prove: int) -> list[object]:
    more = [pytest.param(seed, marks=pytest.mark.prove) for seed in range(suite, prove)]
    return [*range(suite), *more]


@pytest.mark.parametrize("seed", seeds(5, 150))
@on_sqlite
async def test_nothing_is_lost_or_out_of_order(house: House, seed: int) -> None:
    await tell(house, seed)


@pytest.mark.parametrize("seed", seeds(1, 50))
@on_postgresql
async def test_nor_is_it_on_postgresql(house: House, seed: int) -> None:
    await tell(house, seed)
