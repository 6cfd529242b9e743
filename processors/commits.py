"""Waiting on a loop for the next commit, which the ring counts."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from ringbuf import Ring, RingError

# A thread that waits for commits looks that often whether it shall end.
WATCH_S = 1.0


class Commits:
    """Wakes who waits for the next commit."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._changed = asyncio.Event()

    async def watch(self, stop: asyncio.Event) -> None:
        """Until stopped."""
        seen = self._ring.commits
        while not stop.is_set():
            try:
                now = await asyncio.to_thread(self._ring.wait_commits, seen, WATCH_S)
            except RingError:
                return
            if now != seen:
                seen = now
                self.wake()

    def wake(self) -> None:
        """Whoever waits."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self, seen: int, seconds: float) -> None:
        """Until there are more than those, that long at most."""
        if self._ring.commits == seen:
            await happened(self._changed, seconds)


async def happened(event: asyncio.Event, seconds: float) -> None:
    """Until it has, that long at most."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
