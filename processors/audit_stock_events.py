"""Audits events of stock against the replay of their sku."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from processors.audit_report import Report
from processors.posting import STOCK_EXPIRED
from processors.quantity import format_quantity

RULE = "stock-events"


class Ended(Struct):
    """What a movement of kind `expire` did: `told` is whether its event was met."""

    lot: int
    name: str
    left: int
    due: bool
    told: bool = False


class EventReplay:
    """The events of one sku, met movement by movement; those up to `folded` can't be checked any
    more. `forgotten_us`: before that instant events may be gone."""

    def __init__(
        self, sku: str, report: Report, events: Iterator[Any], folded: int, forgotten_us: int
    ) -> None:
        self._sku = sku
        self._report = report
        self._events = events
        self._folded = folded
        self._forgotten_us = forgotten_us
        self._next = self._read()
        self._totals: list[int] = []
        self._ended: Ended | None = None

    def total(self, available: int) -> None:
        """What is available now: after a movement, or after a recall that follows it."""
        self._totals.append(available)

    def expired(self, lot: int, name: str, left: int, *, at_us: int, recalled: bool) -> None:
        """The movement is of kind `expire`, and the lot had that much."""
        due = left > 0 and not recalled and at_us >= self._forgotten_us
        self._ended = Ended(lot, name, left, due)

    def close(self, seq: int) -> None:
        """All that follows is behind that movement, and behind the recalls that follow it."""
        while self._next is not None and self._next.seq <= seq:
            self._meet(self._next, seq)
            self._next = self._read()
        if self._ended is not None and self._ended.due and not self._ended.told:
            self._violate(
                f"lot {self._ended.name} has expired in movement {seq}, and no event says so"
            )
        self._totals, self._ended = [], None

    def end(self) -> None:
        """After the last movement."""
        while self._next is not None:
            self._violate(f"event {self._next.type} is of movement {self._next.seq}, to come yet")
            self._next = self._read()

    def _read(self) -> Any:
        return next(self._events, None)

    def _meet(self, event: Any, seq: int) -> None:
        self._report.counts["stock events"] += 1
        if event.seq <= self._folded:
            return
        if event.seq < seq:
            self._violate(f"event {event.type} is of movement {event.seq}, which is not there")
        elif event.type == STOCK_EXPIRED:
            self._meet_expired(event)
        elif not self._was(event.quantity) or (event.below or 0) <= event.quantity:
            available = format_quantity(event.quantity)
            self._violate(f"an event says that {available} were available at movement {seq}")

    def _was(self, available: int) -> bool:
        """Whether that was available once behind the movement. Of recalls that follow the same one
        nobody knows which came first, but that each left less."""
        if len(self._totals) > 2:
            return self._totals[-1] <= available <= self._totals[0]
        return available in self._totals

    def _meet_expired(self, event: Any) -> None:
        one = self._ended
        if one is None or one.told or (one.lot, one.left) != (event.lot, event.quantity):
            left = format_quantity(event.quantity)
            self._violate(f"an event says that {left} have expired in movement {event.seq}")
        else:
            one.told = True

    def _violate(self, detail: str) -> None:
        self._report.violate(RULE, f"sku {self._sku}: {detail}")
