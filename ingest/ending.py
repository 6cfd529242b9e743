"""Until when a front's long requests may go on, once the front has begun to end."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

# Of --graceful-timeout: so much for what is under way, the rest for the last answers.
SHARE = 0.5


class Ending:
    """One for each front. A request that may take longer than --graceful-timeout looks at `over`
    between its steps and does its waiting in `before`."""

    def __init__(self) -> None:
        self._at_s = math.inf  # of the loop's clock
        self._waits: set[asyncio.Timeout] = set()

    def announce(self, graceful_s: float) -> None:
        """The front ends within that time, counted from the first announcement."""
        now_s = asyncio.get_running_loop().time()
        self._at_s = min(self._at_s, now_s + graceful_s * SHARE)
        for wait in self._waits:
            if (wait.when() or math.inf) > self._at_s:
                wait.reschedule(self._at_s)

    @property
    def over(self) -> bool:
        """Nothing more is to be begun."""
        return asyncio.get_running_loop().time() >= self._at_s

    @asynccontextmanager
    async def before(self, limit_s: float = math.inf) -> AsyncIterator[None]:
        """Raises TimeoutError after that time, or at the end if that comes first."""
        when_s = min(asyncio.get_running_loop().time() + limit_s, self._at_s)
        async with asyncio.timeout_at(when_s if when_s < math.inf else None) as wait:
            self._waits.add(wait)
            try:
                yield
            finally:
                self._waits.discard(wait)
