"""Who waits for a commit hears of it; while nobody waits, commits wake nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from processors.commits import Commits
from ringbuf import Ring

pytestmark = pytest.mark.anyio

SOON_S = 10.0  # an event ends the wait long before


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Counted:
    """A ring as far as it is needed, that tells when its commits are waited for."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self.waits = 0

    @property
    def commits(self) -> int:
        return self._ring.commits

    def wait_commits(self, seen: int, timeout: float) -> int:
        self.waits += 1
        return self._ring.wait_commits(seen, timeout)


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[Ring]:
    with Ring.create(tmp_path / "ring", capacity=2) as ring:
        yield ring


@asynccontextmanager
async def watched(ring: Ring) -> AsyncIterator[tuple[Commits, Counted]]:
    counted = Counted(ring)
    commits = Commits(cast("Ring", counted))
    async with asyncio.timeout(SOON_S), asyncio.TaskGroup() as group:
        group.create_task(commits.watch())
        yield commits, counted
        commits.end()


async def test_a_commit_wakes_all_who_wait(ring: Ring) -> None:
    async with watched(ring) as (commits, _):
        waits = [asyncio.ensure_future(commits.changed(ring.commits, 2 * SOON_S)) for _ in "123"]
        await asyncio.sleep(0)
        ring.bump_commits()
        await asyncio.gather(*waits)


async def test_one_that_was_there_before_is_not_waited_for(ring: Ring) -> None:
    async with watched(ring) as (commits, counted):
        seen = ring.commits
        ring.bump_commits()
        await commits.changed(seen, 2 * SOON_S)
        assert counted.waits == 0


async def test_who_waits_for_an_earlier_one_hears_when_another_comes(ring: Ring) -> None:
    counted = Counted(ring)
    commits = Commits(cast("Ring", counted))
    async with asyncio.timeout(SOON_S):
        first = asyncio.ensure_future(commits.changed(ring.commits, 2 * SOON_S))
        await asyncio.sleep(0)
        ring.bump_commits()  # and nobody has watched yet
        second = asyncio.ensure_future(commits.changed(ring.commits, 2 * SOON_S))
        await first
        watching = asyncio.ensure_future(commits.watch())
        ring.bump_commits()
        await second
        commits.end()
        await watching


async def test_while_nobody_waits_commits_wake_nobody(ring: Ring) -> None:
    async with watched(ring) as (commits, counted):
        for _ in range(3):
            wait = asyncio.ensure_future(commits.changed(ring.commits, 2 * SOON_S))
            await asyncio.sleep(0)
            ring.bump_commits()
            await wait
        assert counted.waits == 3
        for _ in range(100):
            ring.bump_commits()
            await asyncio.sleep(0)
        assert counted.waits == 3


async def test_the_end_ends_every_wait(ring: Ring) -> None:
    async with watched(ring) as (commits, _):
        wait = asyncio.ensure_future(commits.changed(ring.commits, 2 * SOON_S))
        await asyncio.sleep(0)
        commits.end()
        await wait
        await commits.changed(ring.commits, 2 * SOON_S)
