"""Orders with ids of their own, many at a time: which of them are surely new.

What `Acceptor` does for one order (take the id's turn and claim, look in ring, hands and database,
put) is done for all with one question to the database and without a task for each. An id that
somebody else holds is not waited for, and one that is known is not compared here: both are left to
the acceptor. So whoever holds ids here waits for nobody who may wait for them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable
from types import TracebackType
from typing import Self

from ingest.claims import Claims
from ingest.lookup import Earlier
from ingest.turns import Turns
from ringbuf import Ring

# Held together; the kernel looks through all that are held for each that it gives.
IDS_AT_ONCE = 128

FindMany = Callable[[Collection[bytes]], Awaitable[dict[bytes, Earlier]]]


class Novel:
    """One for each front, beside its acceptor, whose turns and claims it takes."""

    def __init__(
        self, ring: Ring, turns: Turns, claims: Claims | None, find_many: FindMany
    ) -> None:
        self._ring = ring
        self._turns = turns
        self._claims = claims
        self._find_many = find_many

    def holding(self) -> Held:
        """Ids to be held within `with`."""
        return Held(self._turns, self._claims)

    async def hold(self, keys: list[bytes], held: Held) -> list[bool]:
        """Which of these ids are new; those are held until let go. Of an id that comes twice the
        second is not. Raises Refused when the database can't tell."""
        # As in Acceptor: an item only moves forwards (ring, hand, database).
        unseen = [await held.take(key) and self._ring.find(key) is None for key in keys]
        asked = [key for key, is_unseen in zip(keys, unseen, strict=True) if is_unseen]
        known = await self._find_many(asked) if asked else {}
        held.let_go(held.keys - set(asked) | known.keys())
        return [is_unseen and key not in known for key, is_unseen in zip(keys, unseen, strict=True)]


class Held:
    """Ids that nobody else of this front or another takes meanwhile."""

    def __init__(self, turns: Turns, claims: Claims | None) -> None:
        self._turns = turns
        self._claims = claims
        self.keys: set[bytes] = set()

    async def take(self, key: bytes) -> bool:
        """Whether it was free. Raises Refused when the kernel has no lock to give."""
        if not await self._turns.take(key):
            return False
        try:
            taken = self._claims is None or self._claims.take(key)
        except BaseException:
            self._turns.leave(key)
            raise
        if not taken:
            self._turns.leave(key)
            return False
        self.keys.add(key)
        return True

    def let_go(self, keys: Iterable[bytes]) -> None:
        """Of those that are held; others stay."""
        for key in self.keys & set(keys):
            self.keys.discard(key)
            if self._claims is not None:
                self._claims.let_go(key)
            self._turns.leave(key)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.let_go(self.keys)
