"""Waiting on a loop for the next commit, which the ring counts."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from ringbuf import Ring, RingError

# A thread that waits for commits looks that often whether it shall end.
WATCH_S = 1.0


class Commits:
    """Wakes who waits for the next commit. While nobody does, commits wake nothing here: hundreds
    of them a second would cost more than what is done about them."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._seen = ring.commits
        self._waiting = 0
        self._wanted = asyncio.Event()
        self._changed = asyncio.Event()
        self._ended = False

    async def watch(self) -> None:
        """Until `end`."""
        while await self._wanted.wait() and not self._ended:
            try:
                now = await asyncio.to_thread(self._ring.wait_commits, self._seen, WATCH_S)
            except RingError:
                return
            if now != self._seen:
                self._wake()

    def end(self) -> None:
        """Nobody waits any more."""
        self._ended = True
        self._wake()
        self._wanted.set()

    async def changed(self, seen: int, seconds: float) -> None:
        """Until there are more than those, that long at most."""
        if self._ended or self._ring.commits != seen:
            return
        if self._seen != seen:
            self._wake()  # whoever waits for one that is there, if it is not seen yet
            self._seen = seen
        self._waiting += 1
        self._wanted.set()
        try:
            await happened(self._changed, seconds)
        finally:
            self._waiting -= 1
            if not (self._waiting or self._ended):
                self._wanted.clear()

    def _wake(self) -> None:
        """Nobody waits for what was waited for until now."""
        self._wanted.clear()
        self._changed.set()
        self._changed = asyncio.Event()


async def happened(event: asyncio.Event, seconds: float) -> None:
    """Until it has, that long at most."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
