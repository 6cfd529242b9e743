"""Look-ups by id in groups."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from ingest.answers import Refused, unavailable
from ingest.database import Database
from ingest.lookup import KEYS_MAX, Earlier, Lookup
from ingest.problems import DATABASE_AWAY
from processors.orders import KnownOrder

pytestmark = pytest.mark.anyio


class SlowDatabase:
    """Answers when told to, and counts the questions."""

    def __init__(self, error: Exception | None = None) -> None:
        self.go_on = asyncio.Event()
        self.asked: list[list[bytes]] = []
        self.error = error

    async def ask(self, _function: Callable[..., Any], keys: list[bytes]) -> dict[bytes, Any]:
        self.asked.append(keys)
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        return {key: KnownOrder(key * 16, "allocated", 7) for key in keys if key != b"?"}


def make(error: Exception | None = None) -> tuple[SlowDatabase, Lookup]:
    database = SlowDatabase(error)
    return database, Lookup(cast(Database, database))


async def begin(lookup: Lookup, keys: list[bytes]) -> list[asyncio.Task[Earlier | None]]:
    tasks = [asyncio.create_task(lookup.find(key)) for key in keys]
    for _ in range(3):  # until each waits for its answer
        await asyncio.sleep(0)
    return tasks


async def test_who_comes_while_a_question_is_under_way_shares_the_next_one() -> None:
    database, lookup = make()
    first = await begin(lookup, [b"a"])
    later = await begin(lookup, [b"b", b"?", b"c"])
    database.go_on.set()
    found = await asyncio.gather(*first, *later)
    assert found == [
        Earlier(b"a" * 16, "allocated", committed_us=7),
        Earlier(b"b" * 16, "allocated", committed_us=7),
        None,
        Earlier(b"c" * 16, "allocated", committed_us=7),
    ]
    assert database.asked == [[b"a"], [b"b", b"?", b"c"]]


async def test_a_question_has_a_largest_size() -> None:
    database, lookup = make()
    first = await begin(lookup, [b"a"])
    later = await begin(lookup, [b"b"] * (KEYS_MAX + 1))
    database.go_on.set()
    await asyncio.gather(*first, *later)
    assert [len(keys) for keys in database.asked] == [1, KEYS_MAX, 1]


async def test_who_hung_up_is_not_asked_for_and_harms_nobody() -> None:
    database, lookup = make()
    first, gone, stays = await begin(lookup, [b"a", b"b", b"c"])
    gone.cancel()
    await asyncio.wait({gone})
    database.go_on.set()
    assert [await first, await stays] == [
        Earlier(b"a" * 16, "allocated", committed_us=7),
        Earlier(b"c" * 16, "allocated", committed_us=7),
    ]


@pytest.mark.parametrize(
    "error", [Refused(unavailable(DATABASE_AWAY, "away", 5)), RuntimeError("a bug")]
)
async def test_everybody_is_told_of_a_failure_and_the_next_question_is_asked(
    error: Exception,
) -> None:
    database, lookup = make(error)
    tasks = await begin(lookup, [b"a", b"b"])
    database.go_on.set()
    assert await asyncio.gather(*tasks, return_exceptions=True) == [error, error]
    database.error = None
    assert await lookup.find(b"d") == Earlier(b"d" * 16, "allocated", committed_us=7)
