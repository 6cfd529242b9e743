"""The relay runs little while others want the cores, and freely while they don't."""

from __future__ import annotations

from pathlib import Path

import pytest

from processors.restraint import LOOK_EVERY_S, SHARE, Cores, Restraint

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Machine:
    """A clock that goes on with the work and the sleep, and cores of which so much is idle."""

    def __init__(self) -> None:
        self.now = self.cpu = self.slept = 0.0
        self.idle = [0.0]
        self.restraint = Restraint(self.idle_share, lambda: self.cpu, lambda: self.now)

    def idle_share(self) -> float:
        return self.idle.pop(0) if len(self.idle) > 1 else self.idle[0]

    def work(self, seconds: float) -> None:
        self.cpu += seconds
        self.now += seconds

    async def sleep(self, seconds: float) -> None:
        self.slept += seconds
        self.now += seconds

    async def round(self, seconds: float) -> None:
        await self.restraint.give_way(self.sleep)
        self.work(seconds)


async def test_while_the_cores_are_wanted_it_has_its_share_of_one() -> None:
    machine = Machine()
    for _ in range(200):
        await machine.round(0.02)
    assert machine.cpu / machine.now == pytest.approx(SHARE, rel=0.1)


async def test_while_cores_are_idle_it_waits_for_nothing() -> None:
    machine = Machine()
    machine.idle = [0.5]
    for _ in range(200):
        await machine.round(0.02)
    assert machine.slept == 0


async def test_what_was_held_back_is_let_go_when_the_rush_is_over() -> None:
    machine = Machine()
    await machine.round(LOOK_EVERY_S)  # long enough to look
    machine.idle = [0.0, 0.0, 0.9]
    await machine.round(3.0)
    assert machine.slept <= 3 * LOOK_EVERY_S


async def test_a_sleep_that_is_cut_short_ends_the_wait() -> None:
    machine = Machine()
    await machine.round(LOOK_EVERY_S)

    async def cut(_: float) -> None:
        machine.slept += 1
        machine.now += 1e-6  # a real clock goes on

    await machine.restraint.give_way(cut)
    assert machine.slept == 1


async def test_cores_are_looked_at_as_the_kernel_counts_them(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu 10 0 10 100 0 0 0 0 0 0\ncpu0 1 2 3\n")
    cores = Cores(stat)
    stat.write_text("cpu 40 0 40 140 0 0 0 0 0 0\ncpu0 1 2 3\n")
    assert cores.idle_share() == pytest.approx(0.4)
    assert cores.idle_share() == 1  # no time has passed
    stat.write_text("nonsense")
    assert cores.idle_share() == 1
    stat.unlink()
    assert Cores(stat).idle_share() == 1
