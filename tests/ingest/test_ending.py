"""What the end of a front ends is told so, however early its timer rings."""

from __future__ import annotations

import asyncio

import pytest

from ingest.ending import Ending
from processors.attempts import Patience

pytestmark = pytest.mark.anyio  # on uvloop, whose timers may ring half a millisecond early


async def test_what_ends_by_it_finds_it_over() -> None:
    for number in range(40):
        ending = Ending()
        ending.announce(0.002 + number * 0.00013)
        with pytest.raises(TimeoutError):
            async with ending.before():
                await asyncio.Event().wait()
        assert ending.over


async def test_an_attempt_that_a_stop_ends_finds_its_time_over() -> None:
    for number in range(40):
        patience = Patience()
        patience.hurry(0.002 + number * 0.00013)
        with pytest.raises(TimeoutError):
            async with patience.one():
                await asyncio.Event().wait()
        assert patience.over
