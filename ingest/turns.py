"""One at a time per key, in order of arrival."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class _Turn:
    """One key's lock, and how many hold or await it."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0


class Turns:
    """Locks by key that exist only while somebody holds or awaits them.

    There are never more than callers, and those are bounded by the front's connections.
    """

    def __init__(self) -> None:
        self._turns: dict[bytes, _Turn] = {}

    def __len__(self) -> int:
        return len(self._turns)

    @asynccontextmanager
    async def of(self, key: bytes) -> AsyncIterator[None]:
        """Hold the key's turn; a cancelled wait leaves nothing behind."""
        turn = self._turns.setdefault(key, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[key]

    async def take(self, key: bytes) -> bool:
        """Hold the key's turn until `leave`, unless somebody has it; does not wait."""
        if key in self._turns:
            return False
        turn = self._turns[key] = _Turn()
        turn.users = 1
        await turn.lock.acquire()  # at once, for nobody knows of it yet
        return True

    def leave(self, key: bytes) -> None:
        """What was taken is the next one's."""
        turn = self._turns[key]
        turn.users -= 1
        turn.lock.release()
        if not turn.users:
            del self._turns[key]
