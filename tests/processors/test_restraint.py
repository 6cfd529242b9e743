"""The relay runs little while others want the cores, and freely while they don't."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from processors.restraint import LOOK_EVERY_S, RESERVE, SHARE, Restraint

pytestmark = pytest.mark.anyio

COUNT = 2.0
BURST_S = 0.005


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Machine:
    """A clock that goes on with the work and the sleep, on cores of which others use so much."""

    def __init__(self, others: float) -> None:
        self.others = others
        self.now = self.cpu = self.slept = 0.0
        self._looked = 0.0, 0.0
        self.restraint = Restraint(self.idle, COUNT, lambda: self.cpu, lambda: self.now)

    def idle(self) -> float:
        (then, cpu), self._looked = self._looked, (self.now, self.cpu)
        return max(0.0, COUNT - self.others - (self.cpu - cpu) / (self.now - then))

    async def sleep(self, seconds: float) -> None:
        self.slept += seconds
        self.now += seconds

    async def work(self, seconds: float, sleep: Callable[[float], Awaitable[None]]) -> None:
        """So long, in pieces."""
        end = self.now + seconds
        while self.now < end:
            await self.restraint.give_way(sleep)
            self.cpu += BURST_S
            self.now += BURST_S

    async def share(self, seconds: float) -> float:
        """Of a core that it has for so long."""
        before = self.now, self.cpu
        await self.work(seconds, self.sleep)
        return (self.cpu - before[1]) / (self.now - before[0])


async def test_while_the_cores_are_wanted_it_has_its_share_of_one() -> None:
    machine = Machine(others=COUNT)
    await machine.share(2 * LOOK_EVERY_S)  # until it has looked
    assert await machine.share(60) == pytest.approx(SHARE, rel=0.02)


async def test_it_falls_back_to_its_share_at_once() -> None:
    machine = Machine(others=0)
    assert await machine.share(3) == pytest.approx(1)
    machine.others = COUNT
    used = machine.cpu
    await machine.work(10, machine.sleep)
    assert machine.cpu - used < 3 * LOOK_EVERY_S + 10 * SHARE


async def test_while_cores_are_idle_it_waits_for_nothing() -> None:
    machine = Machine(others=0.5)
    await machine.work(10, machine.sleep)
    assert machine.slept == 0


async def test_what_is_idle_beside_the_reserve_is_its_to_use() -> None:
    machine = Machine(others=1.2)
    await machine.share(1)
    assert await machine.share(60) == pytest.approx(COUNT - 1.2 - RESERVE * COUNT, rel=0.1)


async def test_what_was_held_back_is_let_go_when_the_rush_is_over() -> None:
    machine = Machine(others=COUNT)
    await machine.work(10, machine.sleep)
    machine.others = 0
    assert await machine.share(5 * LOOK_EVERY_S) > 0.5
    assert await machine.share(1) == pytest.approx(1)


async def test_what_was_not_used_is_not_kept_for_later() -> None:
    machine = Machine(others=COUNT)
    await machine.share(2)
    machine.now += 3600
    used = machine.cpu
    await machine.work(10, machine.sleep)
    assert machine.cpu - used == pytest.approx(10 * SHARE, abs=2 * BURST_S)


async def test_a_sleep_that_is_cut_short_ends_the_wait() -> None:
    machine = Machine(others=COUNT)
    await machine.share(2)
    calls = 0

    async def cut(_: float) -> None:
        nonlocal calls
        calls += 1
        machine.now += 1e-6  # a real clock goes on

    machine.cpu += 1
    await machine.restraint.give_way(cut)
    assert calls == 1


async def test_many_who_wait_look_at_the_clock_one_by_one() -> None:
    machine = Machine(others=COUNT)
    await machine.share(2)
    machine.cpu += SHARE
    asleep = most = 0

    async def sleep(seconds: float) -> None:
        nonlocal asleep, most
        asleep += 1
        most = max(most, asleep)
        await asyncio.sleep(0)
        machine.now += seconds
        asleep -= 1

    await asyncio.gather(*(machine.restraint.give_way(sleep) for _ in range(50)))
    assert most == 1
    assert machine.now < 4
