"""Until when a front's long requests may go on, once the front has begun to end."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from processors.instants import EARLY_S

# Of --graceful-timeout: after so much nothing more is begun, after so much nobody is waited for;
# what is left is for the last answers.
LAST_BEGUN, LAST_READ = 0.5, 0.75


class Ending:
    """One for each front. A request that may take longer than --graceful-timeout looks at `over`
    between its steps and does its waiting in `before`."""

    def __init__(self) -> None:
        self._at_s = self._read_by_s = math.inf  # of the loop's clock
        self._waits: set[asyncio.Timeout] = set()
        self._to_tell: set[Callable[[], object]] = set()

    def announce(self, graceful_s: float) -> None:
        """The front ends within that time, counted from the first announcement."""
        now_s = asyncio.get_running_loop().time()
        self._at_s = min(self._at_s, now_s + graceful_s * LAST_BEGUN)
        self._read_by_s = min(self._read_by_s, now_s + graceful_s * LAST_READ)
        for wait in self._waits:
            if (wait.when() or math.inf) > self._at_s:
                wait.reschedule(self._at_s)
        for tell in list(self._to_tell):
            tell()

    @contextmanager
    def telling(self, callback: Callable[[], object]) -> Iterator[None]:
        """Meanwhile it is called when the end is announced, or now, if it was: for what need not
        go on at all."""
        self._to_tell.add(callback)
        if self._at_s < math.inf:
            callback()
        try:
            yield
        finally:
            self._to_tell.discard(callback)

    @property
    def over(self) -> bool:
        """Nothing more is to be begun."""
        return asyncio.get_running_loop().time() + EARLY_S >= self._at_s

    def patience_s(self, limit_s: float) -> float:
        """How long a client that has its last answer may still be waited for, at most limit_s."""
        return min(limit_s, max(0.0, self._read_by_s - asyncio.get_running_loop().time()))

    def before(self, limit_s: float = math.inf) -> Before:
        """To wait in: raises TimeoutError after that time, or at the end if that comes first."""
        return Before(self, limit_s)

    def watch(self, limit_s: float) -> asyncio.Timeout:
        """A timeout that is moved when the front begins to end, until `forget`."""
        when_s = min(asyncio.get_running_loop().time() + limit_s, self._at_s)
        wait = asyncio.timeout_at(when_s if when_s < math.inf else None)
        self._waits.add(wait)
        return wait

    def forget(self, wait: asyncio.Timeout) -> None:
        self._waits.discard(wait)


class Before:
    """A class, for it is entered with every wait of a bulk, and a generator would cost more."""

    __slots__ = ("_ending", "_limit_s", "_wait")

    def __init__(self, ending: Ending, limit_s: float) -> None:
        self._ending = ending
        self._limit_s = limit_s

    async def __aenter__(self) -> None:
        self._wait = self._ending.watch(self._limit_s)
        await self._wait.__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        self._ending.forget(self._wait)
        await self._wait.__aexit__(*error)
