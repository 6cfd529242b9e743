"""A journal to test with, and what it said."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from ringbuf import Journal, JournalRules, RoomGone
from ringbuf.segment import PAGE_BYTES, SEGMENT_BYTES_MIN, group_bytes, segment_paths
from tests.ringbuf.kit import PATIENCE_S
from tests.ringbuf.segments import HEADER, order, read

PAGES = SEGMENT_BYTES_MIN // PAGE_BYTES - 1  # for groups, in the smallest segment
BIG = 9 * PAGE_BYTES  # more than half of it
OPENED = 200


class Desk:
    """A journal of the smallest segments, and what it said."""

    def __init__(self, directory: Path, segment_bytes: int = SEGMENT_BYTES_MIN) -> None:
        self.directory = directory
        self.segment_bytes = segment_bytes
        self.segments_max = 20
        self.told: list[int] = []
        self.failures: list[OSError] = []
        self.appended = 0

    async def open(self) -> Journal:
        rules = JournalRules(self.directory, HEADER, self.segment_bytes, self.segments_max)
        self.journal = await Journal.open(rules, self.failures.append)
        return self.journal

    def append(self, payload_bytes: int = 8) -> int:
        """The next order, which there must be room for -> its number."""
        number = self.appended
        record = order(number, payload_bytes).encode()
        assert self.journal.has_room(len(record))
        self.journal.append(record)
        self.journal.after_sync(lambda: self.told.append(number))
        self.appended += 1
        return number

    def fill_current(self) -> None:
        """Until only the spare one has room."""
        current = self.journal._current
        assert current is not None
        self.append(current.free - group_bytes(0) - 44 - 8)

    def numbers(self) -> list[int]:
        """Of all orders on disk, and nothing is damaged."""
        while True:
            try:
                found = {path.stem: read(path) for path in segment_paths(self.directory)}
                break
            except FileNotFoundError:  # sealed between the look at the directory and at it
                continue
        assert not [damage for _, damage in found.values() if damage]
        orders = [one for some, _ in found.values() for one in some]
        assert orders == [order(one.sequence, len(one.payload)) for one in orders]
        return [one.sequence for one in orders]

    def names(self) -> list[str]:
        return sorted(path.suffix for path in self.directory.iterdir())


async def until(seen: Callable[[], bool]) -> None:
    """Turns of the loop, for what happens in other threads and is told to nobody."""
    async with asyncio.timeout(PATIENCE_S):
        while not seen():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def refused(waiting: Awaitable[int]) -> str:
    with pytest.raises(RoomGone) as raised:
        await asyncio.wait_for(waiting, PATIENCE_S)
    return str(raised.value)
