"""One at a time per key."""

from __future__ import annotations

import asyncio

import pytest

from ingest.turns import Turns

pytestmark = pytest.mark.anyio


async def test_turns_of_a_key_come_in_order_and_nothing_is_kept() -> None:
    turns, seen = Turns(), []

    async def user(number: int) -> None:
        async with turns.of(b"k"):
            seen.append(number)
            await asyncio.sleep(0)
            seen.append(number)

    await asyncio.gather(*(user(number) for number in range(4)))
    assert seen == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(turns) == 0


async def test_keys_do_not_wait_for_each_other() -> None:
    turns = Turns()
    async with turns.of(b"a"), turns.of(b"b"):
        assert len(turns) == 2
    assert len(turns) == 0


async def test_a_cancelled_wait_leaves_nothing() -> None:
    turns = Turns()

    async def wait() -> None:
        async with turns.of(b"k"):
            raise AssertionError("it was never its turn")

    async with turns.of(b"k"):
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        assert waiting.cancelled()
        assert len(turns) == 1
    assert len(turns) == 0
    async with turns.of(b"k"):
        assert len(turns) == 1
