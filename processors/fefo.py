"""First expired, first out: which lots an order is given from. Pure: no database, no clock.

Orders are served in the order in which they come, each in full or not at all, from the lots of its
skus in the order of use: expires_us, received_us, lot id (text by its bytes). A lot with
`expires_us <= moment` is never used.

A shelf reads its lots as far as orders reach, and knows beforehand how much they have together: so
the cost follows what is given out, also for an order that wants too much of one of its skus, and
not what a sku has in stock, let alone what it ever had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from msgspec import Struct

from processors.schema import Line, Order

INSUFFICIENT_STOCK = "insufficient_stock"
UNKNOWN_SKU = "unknown_sku"


class StockedLot(NamedTuple):
    """A lot with stock; `number` is its row, `available` thousandths."""

    expires_us: int
    received_us: int
    lot_id: str
    number: int
    available: int


class Portion(NamedTuple):
    """What one order was given from one lot, in thousandths."""

    sku: str
    number: int
    thousandths: int


class Lack(NamedTuple):
    """Of which sku an order wanted more than there was, or which there never was; thousandths."""

    sku: str
    wanted: int
    left: int


class Verdict(Struct, frozen=True):
    """Of one order: its portions (line by line, in the order of use), or the reason of refusal and
    a line for which it holds."""

    portions: list[Portion]
    reason: str | None = None
    lack: Lack | None = None


# The lots that come behind one (None: from the first) in the order of use: none when that was the
# last. Only lots with `expires_us > moment`, `available > 0`, and not recalled.
ReadLots = Callable[[StockedLot | None], Iterable[StockedLot]]


class Shelf:
    """What is left of one sku's stock, lots read in as they are needed.

    `total`: what all lots together have that `read` will ever give, and what those have that
    expired a moment ago; that is asked for, once, when it makes a difference: `lately`.

    Invariants: `left` = the sum of `rest` from `at` on; nothing before `at` has anything left;
    `total` bounds what is left, whether it was read or not.
    """

    def __init__(self, read: ReadLots, total: int, lately: Callable[[], int] = lambda: 0) -> None:
        self._read = read
        self._read_all = False
        self._lately: Callable[[], int] | None = lately
        self.total = total
        self.lots: list[StockedLot] = []
        self.rest: list[int] = []
        self.at = 0
        self.left = 0

    def may_cover(self, thousandths: int) -> bool:
        """False: it does not. Nothing is read."""
        return thousandths <= self.total

    def covers(self, thousandths: int) -> bool:
        """Whether that much is there."""
        while self.left < thousandths <= self.total and not self._read_all:
            if self.lots and self._lately:
                self._be_exact()
            else:
                self._read_more()
        return self.left >= thousandths

    def lack(self, sku: str, thousandths: int) -> Lack:
        """That much is not covered."""
        self._be_exact()
        return Lack(sku, thousandths, self.total)

    def _be_exact(self) -> None:
        if self._lately:
            self.total -= self._lately()
            self._lately = None

    def give(self, sku: str, thousandths: int) -> list[Portion]:
        """Takes that much away; it must be covered."""
        portions = []
        self.left -= thousandths
        self.total -= thousandths
        while thousandths:
            rest = self.rest[self.at]
            part = min(rest, thousandths)
            portions.append(Portion(sku, self.lots[self.at].number, part))
            self.rest[self.at] = rest - part
            thousandths -= part
            if part == rest:
                self.at += 1
        return portions

    def _read_more(self) -> None:
        more = list(self._read(self.lots[-1] if self.lots else None))
        self._read_all = not more
        self.lots += more
        self.rest += [lot.available for lot in more]
        self.left += sum(lot.available for lot in more)


def allocate(shelves: Mapping[str, Shelf], orders: Iterable[Order]) -> list[Verdict]:
    """One verdict per order, in their order; a sku without a shelf is unknown.

    An order with an unknown sku is refused for that, whatever else it lacks.
    """
    return [serve(shelves, order.lines) for order in orders]


def serve(shelves: Mapping[str, Shelf], lines: list[Line]) -> Verdict:
    """Gives one order all of its lines or nothing. One line per sku, each more than 0."""
    for line in lines:
        if line.sku not in shelves:
            return Verdict([], UNKNOWN_SKU, Lack(line.sku, line.thousandths, 0))
    # All sums before the first lot: whoever lacks one line reads nothing for the others.
    for enough in (Shelf.may_cover, Shelf.covers):
        for line in lines:
            shelf = shelves[line.sku]
            if not enough(shelf, line.thousandths):
                return Verdict([], INSUFFICIENT_STOCK, shelf.lack(line.sku, line.thousandths))
    portions: list[Portion] = []
    for line in lines:
        portions += shelves[line.sku].give(line.sku, line.thousandths)
    return Verdict(portions)
