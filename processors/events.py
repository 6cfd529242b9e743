"""An event, as endpoints are told of it, and how far one has looked through all there are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from msgspec import Struct

OF_STOCK = "stock."


class Event(Struct, frozen=True):
    """`place`: in the outbox, or among the events of stock; `subject`: whose events are told in
    order, an order's id or a sku; `number`: of the event among those of its subject."""

    place: int
    id: bytes
    subject: bytes
    number: int
    type: str
    created_us: int

    @property
    def of_stock(self) -> bool:
        """Where its place is."""
        return self.type.startswith(OF_STOCK)


class Place(NamedTuple):
    """All up to here: of the outbox, and of the events of stock."""

    event: int
    stock_event: int

    def behind(self, passed: Iterable[Event]) -> Place:
        """The one behind these, too, which are in order."""
        event, stock_event = self
        for one in passed:
            if one.of_stock:
                stock_event = max(stock_event, one.place)
            else:
                event = max(event, one.place)
        return Place(event, stock_event)

    def past(self, other: Place) -> int:
        """How many places it is further than the other, at most."""
        return sum(self) - sum(other)
